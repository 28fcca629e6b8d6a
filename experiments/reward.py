"""A reward model: a linear head on the last token of an answer, learned from which of two answers is better.

    python -m llm_jax.launch experiment=reward from=runs/sft/default
    python -m llm_jax.evaluate runs/reward/default rewards=answers.jsonl

Without data.source the pairs are generated: tasks, each with its right answer and a wrong one. A record has
"prompt", "chosen" and "rejected", and may have a "margin". The head starts at 0, beside the weights of the
language model in from=.
Expected: at step 0 the loss is ln 2 = 0.693; then the accuracy on held-out pairs rises
(docs/post_training.md has figures).
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.reward import Reward
from llm_jax.train.config import TO_BE_GIVEN, CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        model=ModelConfig(outputs="reward"),
        layout=preset("data_parallel"),
        objective=Reward(),
        data=DataConfig(source="task_pairs", held_out_fraction=0.05),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-4, weight_decay=0.0),
        train=TrainConfig(start_from=TO_BE_GIVEN, steps=200, batch_size=8, sequence_length=1024),
        evaluate=EvaluateConfig(every=50, batches=8, final_batches=None),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(tokens=0),
    )
