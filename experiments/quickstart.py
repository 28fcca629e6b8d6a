"""A small language model of Python code and its documentation, trained in minutes on a laptop.

    python -m llm_jax.launch experiment=quickstart

Corpus: the Python standard library that is on this machine (nothing is downloaded).
Expected on two CPU cores: about 3 minutes, held-out bits per byte below 1.8, samples that look like Python.
A small model and Muon suit so little time: docs/log.md lists what else was tried.
"""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        model=ModelConfig(layers=4, embed=128, heads=8, mlp=352, attention="blocked", scan_layers=False),
        layout=preset("data_parallel"),
        data=DataConfig(source="stdlib", held_out_fraction=0.05),
        tokenizer=TokenizerConfig(vocab=4096),
        optimizer=OptimizerConfig(name="muon", learning_rate=8e-3, warmup_steps=50),
        train=TrainConfig(steps=700, batch_size=8, sequence_length=256),
        evaluate=EvaluateConfig(every=200, batches=24, final_batches=None),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(prompts=("", "def main(", '"""Return the'), tokens=60),
    )
