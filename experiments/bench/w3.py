"""W3."""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.next_token import ObjectiveConfig
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        model=ModelConfig(
            layers=22,
            embed=2048,
            heads=32,
            kv_heads=4,
            mlp=5632,
            vocab=32000,
            tied_embeddings=False,
            compute_dtype="bfloat16",
            attention="cudnn",
            remat="none",
        ),
        layout=preset("fsdp"),
        data=DataConfig(source="stdlib"),
        tokenizer=TokenizerConfig(vocab=8192),
        objective=ObjectiveConfig(chunk=4096),
        optimizer=OptimizerConfig(name="adamw", learning_rate=4e-4, warmup_steps=100, clip_norm=1.0),
        train=TrainConfig(steps=200, batch_size=8, sequence_length=4096),
        evaluate=EvaluateConfig(every=0, batches=4, final_batches=16),
        checkpoint=CheckpointConfig(every=100, keep=1, keep_best=False),
        sample=SampleConfig(tokens=0),
    )
