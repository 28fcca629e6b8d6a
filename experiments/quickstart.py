"""The main job: a small language model of Python code and its documentation, in minutes on a laptop.

    python -m llm_jax.launch experiment=quickstart

Corpus: the Python standard library that is on this machine (nothing is downloaded).
Expected on two CPU cores: about 4 minutes, held-out bits per byte below 1.9, samples that look like Python.
"""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        model=ModelConfig(layers=4, embed=256, heads=4, mlp=704, attention="blocked", scan_layers=False),
        layout=preset("data_parallel"),
        data=DataConfig(source="stdlib"),
        tokenizer=TokenizerConfig(vocab=4096),
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, warmup_steps=30),
        train=TrainConfig(steps=300, batch_size=8, sequence_length=256),
        evaluate=EvaluateConfig(every=100, batches=16, final_batches=32),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(prompts=("", "def main(", '"""Return the'), tokens=60),
    )
