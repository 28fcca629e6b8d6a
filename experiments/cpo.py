"""Contrastive preference optimisation (and SimPO): a model learns which of two answers is better, without a reference.

    python -m llm_jax.launch experiment=cpo from=runs/sft/default data.source=pairs.jsonl
    python -m llm_jax.launch experiment=cpo from=runs/sft/default data.source=pairs.jsonl objective.loss=simpo \
        objective.beta=2 objective.gamma=1

A record has "prompt", "chosen" and "rejected", or "chosen" and "rejected" as whole conversations. There is no
reference.
Expected: the accuracy rises; with simpo nothing but the learning rate keeps the model near where it starts.
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.objective.cpo import CPO
from llm_jax.train.config import TO_BE_GIVEN, CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        layout=preset("data_parallel"),
        objective=CPO(),
        data=DataConfig(source="pairs.jsonl", held_out_fraction=0.05),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-6, weight_decay=0.0),
        train=TrainConfig(start_from=TO_BE_GIVEN, steps=200, batch_size=8, sequence_length=1024),
        evaluate=EvaluateConfig(every=50, batches=8, final_batches=None),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(tokens=0),
    )
