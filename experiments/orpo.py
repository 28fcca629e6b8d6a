"""Odds-ratio preference optimisation: fine-tuning on the better of two answers and against the worse one, in one stage.

    python -m llm_jax.launch experiment=orpo
    python -m llm_jax.launch experiment=orpo from=runs/quickstart/default data.source=pairs.jsonl chat.template=chatml

A record has "prompt", "chosen" and "rejected", or "chosen" and "rejected" as whole conversations. There is no
reference: the run may start with a base model.
Without from=, the model of experiment=sft learns from generated tasks, each with a right and a wrong answer, in a minute or
two on two CPU cores.
Expected: the loss is a cross-entropy plus a small penalty; both fall, and the accuracy rises.
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.objective.orpo import ORPO
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
        objective=ORPO(),
        data=DataConfig(source="pairs.jsonl", held_out_fraction=0.05),
        optimizer=OptimizerConfig(name="adamw", learning_rate=8e-6, weight_decay=0.0),
        train=TrainConfig(
            start_from=to_be_given_or(*AFTER_SFT), steps=200, batch_size=8, sequence_length=1024
        ),
        evaluate=EvaluateConfig(every=50, batches=8, final_batches=None),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(tokens=0),
    )
