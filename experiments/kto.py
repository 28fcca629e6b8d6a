"""Kahneman-Tversky optimisation: a model learns from answers that are wanted or not, without pairs.

    python -m llm_jax.launch experiment=kto from=runs/sft/default data.source=answers.jsonl

A record has "prompt", "completion" and "label" (true: wanted). Both labels must be there; where one is rarer,
objective.desirable_weight or objective.undesirable_weight makes up for it (weight times number of the wanted answers
should be 1 to 1.33 times that of the unwanted ones). The reference is the model that the run starts with
(objective.reference=FOLDER: another).
Expected: at step 0 the loss is 0.5 and all rewards are 0; then wanted_reward rises above unwanted_reward.
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.objective.kto import KTO
from llm_jax.train.config import TO_BE_GIVEN, CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        layout=preset("data_parallel"),
        objective=KTO(),
        data=DataConfig(source="answers.jsonl", held_out_fraction=0.05),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-6, weight_decay=0.0),
        train=TrainConfig(start_from=TO_BE_GIVEN, steps=200, batch_size=8, sequence_length=1024),
        evaluate=EvaluateConfig(every=50, batches=8, final_batches=None),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(tokens=0),
    )
