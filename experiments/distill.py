"""Distillation: a small model learns the next-token distribution of a larger one.

    python -m llm_jax.launch experiment=distill from=runs/small/default teacher=runs/large/default
    python -m llm_jax.launch experiment=distill teacher=runs/large/default model.layers=2 model.embed=128

The student starts with the weights of from= or, without it, at random, with the teacher's tokenizer. Texts
are learned whole, conversations as in experiment=sft (objective.records=conversations). objective.beta=0 is
the forward KL divergence, 1 the reverse, 0.5 Jensen-Shannon; objective.hard mixes in the data's own
cross-entropy (docs/post_training.md).
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.objective.distill import Distill
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        layout=preset("data_parallel"),
        objective=Distill(),
        data=DataConfig(source="stdlib", held_out_fraction=0.02),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3),
        train=TrainConfig(steps=500, batch_size=8, sequence_length=256),
        evaluate=EvaluateConfig(every=100, batches=8, final_batches=None),
        checkpoint=CheckpointConfig(every=100),
        sample=SampleConfig(tokens=60),
    )
