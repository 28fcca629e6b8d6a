"""The experiment that the toy objectives train: small, every dim divides by 8 devices."""

from __future__ import annotations

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def tiny() -> Experiment:
    return Experiment(
        model=ModelConfig(layers=2, embed=32, heads=4, kv_heads=4, head_dim=8, mlp=48),
        layout=preset("single"),
        data=DataConfig(source="small.jsonl", held_out_fraction=0.05),
        tokenizer=TokenizerConfig(vocab=320),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2, weight_decay=0.0),
        train=TrainConfig(steps=8, batch_size=8, sequence_length=32),
        evaluate=EvaluateConfig(every=4, batches=1, final_batches=1),
        checkpoint=CheckpointConfig(every=4),
        sample=SampleConfig(tokens=0),
    )
