"""Kahneman-Tversky optimisation: a model learns from answers that are wanted or not, without pairs.

    python -m llm_jax.launch experiment=kto
    python -m llm_jax.launch experiment=kto from=runs/sft/default data.source=answers.jsonl

A record has "prompt", "completion" and "label" (true: wanted). Both labels must be there; where one is rarer,
objective.desirable_weight or objective.undesirable_weight makes up for it (weight times number of the wanted answers
should be 1 to 1.33 times that of the unwanted ones). The reference is the model that the run starts with
(objective.reference=FOLDER: another). A record of experiment=dpo is a wanted and an
unwanted answer.
Without from=, the model of experiment=sft learns from generated tasks, each with a right and a wrong answer, in a minute or
two on two CPU cores.
Expected: at step 0 the loss is 0.5 and all rewards are 0; then wanted_reward rises above unwanted_reward.
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.objective.kto import KTO
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
        objective=KTO(),
        data=DataConfig(source="answers.jsonl", held_out_fraction=0.05),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-6, weight_decay=0.0),
        train=TrainConfig(
            start_from=to_be_given_or(*AFTER_SFT), steps=200, batch_size=8, sequence_length=1024
        ),
        evaluate=EvaluateConfig(every=50, batches=8, final_batches=None),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(tokens=0),
    )
