"""Contrastive preference optimisation (and SimPO): a model learns which of two answers is better, without a reference.

    python -m llm_jax.launch experiment=cpo
    python -m llm_jax.launch experiment=cpo from=runs/sft/default data.source=pairs.jsonl
    python -m llm_jax.launch experiment=cpo from=runs/sft/default data.source=pairs.jsonl objective.loss=simpo \
        objective.beta=2 objective.gamma=1

A record has "prompt", "chosen" and "rejected", or "chosen" and "rejected" as whole conversations. There is no
reference.
Without from=, the model of experiment=sft learns from generated tasks, each with a right and a wrong answer, in a minute or
two on two CPU cores.
Expected: the accuracy rises; with simpo nothing but the learning rate keeps the model near where it starts.
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.objective.cpo import CPO
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig, to_be_given_or
from llm_jax.train.optimizer import OptimizerConfig

AFTER_SFT = (
    "from=runs/sft/default",
    "data.source=task_pairs",
    "train.steps=60",
    "train.batch_size=16",
    "train.sequence_length=256",
    "optimizer.learning_rate=3e-5",
    "evaluate.every=20",
    "sample.tokens=48",
)
"""In place of from=...: the small model of experiment=sft, and generated pairs."""


def experiment() -> Experiment:
    return Experiment(
        layout=preset("data_parallel"),
        objective=CPO(),
        data=DataConfig(source="pairs.jsonl", held_out_fraction=0.05),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-6, weight_decay=0.0),
        train=TrainConfig(
            start_from=to_be_given_or(*AFTER_SFT), steps=200, batch_size=8, sequence_length=1024
        ),
        evaluate=EvaluateConfig(every=50, batches=8, final_batches=None),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(tokens=0),
    )
