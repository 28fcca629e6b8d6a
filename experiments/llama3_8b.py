"""Llama 3 8B: the published shape, sequence 8192, to plan with and to train from scratch.

    python -m llm_jax.plan experiment=llama3_8b devices=64 hardware=h100
    python -m llm_jax.plan experiment=llama3_8b devices=64 hardware=h100 layout=all
    python -m llm_jax.plan experiment=llama3_8b devices=8 hardware=h100 train.batch_size=16     # torchtitan's published run
    python -m llm_jax.launch experiment=llama3_8b data.source=CORPUS tokenizer.file=TOKENIZER   # on 64 GPUs

Shape: Grattafiori et al. 2024, table 3 (8,030,261,248 parameters, with the vocabulary of 128,256). Batch: 128
rows of 8,192 are a million tokens, 2 rows per GPU on 64. `remat` keeps queries, values, attention and the
gate and recomputes keys, the attention's projection and the up-projection, as torchtitan's selective
checkpointing does.
Expected: not trained here. docs/plan.md compares the plan with published measurements.
"""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        model=ModelConfig(
            layers=32, embed=4096, heads=32, kv_heads=8, mlp=14336, vocab=128256, tied_embeddings=False, rope_theta=500000.0,
            compute_dtype="bfloat16", attention="cudnn", remat="query,value,attention,mlp_gate",
        ),
        layout=preset("fsdp"),
        data=DataConfig(source="stdlib"),
        tokenizer=TokenizerConfig(vocab=128256),
        objective=NextToken(chunk=4096),
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-4, warmup_steps=8000, clip_norm=1.0),
        train=TrainConfig(steps=100_000, batch_size=128, sequence_length=8192),
        evaluate=EvaluateConfig(every=1000, batches=4, final_batches=16),
        checkpoint=CheckpointConfig(every=1000),
    )  # fmt: skip
