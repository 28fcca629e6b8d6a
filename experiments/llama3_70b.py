"""Llama 3 70B: the published shape, sequence 8192, to plan with.

    python -m llm_jax.plan experiment=llama3_70b devices=512 hardware=h100
    python -m llm_jax.plan experiment=llama3_70b devices=512 hardware=h100 layout=fsdp_tensor mesh.tensor=8
    python -m llm_jax.plan experiment=llama3_70b devices=128 hardware=h100 train.batch_size=256   # NVIDIA's MaxText recipe

Shape: Grattafiori et al. 2024, table 3 (70,553,706,496 parameters). Batch: 1,024 rows of 8,192 are eight
million tokens, 2 rows per GPU on 512. `remat` keeps queries, keys and values and recomputes the rest, as
NVIDIA's recipe does (save_qkv_proj).
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
            layers=80, embed=8192, heads=64, kv_heads=8, mlp=28672, vocab=128256, tied_embeddings=False, rope_theta=500000.0,
            compute_dtype="bfloat16", attention="cudnn", remat="query,key,value",
        ),
        layout=preset("fsdp"),
        data=DataConfig(source="stdlib"),
        tokenizer=TokenizerConfig(vocab=128256),
        objective=NextToken(chunk=2048),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1.5e-4, warmup_steps=8000, clip_norm=1.0),
        train=TrainConfig(steps=100_000, batch_size=1024, sequence_length=8192),
        evaluate=EvaluateConfig(every=1000, batches=4, final_batches=16),
        checkpoint=CheckpointConfig(every=1000),
    )  # fmt: skip
