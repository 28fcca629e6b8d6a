"""A reward model: a linear head on the last token of an answer, learned from which of two answers is better.

    python -m llm_jax.launch experiment=reward
    python -m llm_jax.launch experiment=reward from=runs/sft/default
    python -m llm_jax.evaluate runs/reward/default rewards=answers.jsonl

A record has "prompt", "chosen" and "rejected", and may have a "margin". The head starts at 0, beside the weights of the
language model in from=.
Without from=, the model of experiment=sft learns from generated tasks, each with a right and a wrong answer, in a minute or
two on two CPU cores.
Expected: at step 0 the loss is ln 2 = 0.693; then the accuracy on held-out pairs rises
(docs/post_training.md has figures).
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.reward import Reward
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig, to_be_given_or
from llm_jax.train.optimizer import OptimizerConfig

AFTER_SFT = (
    "from=runs/sft/default",
    "data.source=task_pairs",
    "train.steps=200",
    "train.batch_size=16",
    "train.sequence_length=256",
    "optimizer.learning_rate=1e-3",
    "evaluate.every=50",
)
"""In place of from=...: the small model of experiment=sft, and generated pairs."""


def experiment() -> Experiment:
    return Experiment(
        model=ModelConfig(outputs="reward"),
        layout=preset("data_parallel"),
        objective=Reward(),
        data=DataConfig(source="task_pairs", held_out_fraction=0.05),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-4, weight_decay=0.0),
        train=TrainConfig(
            start_from=to_be_given_or(*AFTER_SFT), steps=200, batch_size=8, sequence_length=1024
        ),
        evaluate=EvaluateConfig(every=50, batches=8, final_batches=None),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(tokens=0),
    )
