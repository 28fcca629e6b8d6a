"""Odds-ratio preference optimisation: fine-tuning on the better of two answers and against the worse one, in one stage.

    python -m llm_jax.launch experiment=orpo from=runs/quickstart/default data.source=pairs.jsonl chat.template=chatml

A record has "prompt", "chosen" and "rejected", or "chosen" and "rejected" as whole conversations. There is no
reference: the run may start with a base model.
Expected: the loss is a cross-entropy plus a small penalty; both fall, and the accuracy rises.
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.objective.orpo import ORPO
from llm_jax.train.config import TO_BE_GIVEN, CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        layout=preset("data_parallel"),
        objective=ORPO(),
        data=DataConfig(source="pairs.jsonl", held_out_fraction=0.05),
        optimizer=OptimizerConfig(name="adamw", learning_rate=8e-6, weight_decay=0.0),
        train=TrainConfig(start_from=TO_BE_GIVEN, steps=200, batch_size=8, sequence_length=1024),
        evaluate=EvaluateConfig(every=50, batches=8, final_batches=None),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(tokens=0),
    )
