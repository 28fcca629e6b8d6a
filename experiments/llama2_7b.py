"""Llama 2 7B: the published shape, sequence 4096, to plan with.

    python -m llm_jax.plan experiment=llama2_7b devices=8 hardware=h100

Shape: Touvron et al. 2023 (6,738,415,616 parameters; every query head has its own keys). Batch: 16 rows of
4,096, 2 per GPU on eight; `remat` keeps the result of every product and of attention (minimal_flash), as in
the MaxText run whose speed NVIDIA's JAX-Toolbox publishes.
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
            layers=32, embed=4096, heads=32, mlp=11008, vocab=32000, tied_embeddings=False, norm_epsilon=1e-5,
            compute_dtype="bfloat16", attention="cudnn", remat="query,key,value,attention,attention_out,mlp_gate,mlp_up",
        ),
        layout=preset("fsdp"),
        data=DataConfig(source="stdlib"),
        tokenizer=TokenizerConfig(vocab=32000),
        objective=NextToken(chunk=4096),
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-4, warmup_steps=2000, clip_norm=1.0),
        train=TrainConfig(steps=100_000, batch_size=16, sequence_length=4096),
        evaluate=EvaluateConfig(every=1000, batches=4, final_batches=16),
        checkpoint=CheckpointConfig(every=1000),
    )  # fmt: skip
