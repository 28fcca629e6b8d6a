"""Direct preference optimisation: a model learns which of two answers is better, and stays near where it starts.

    python -m llm_jax.launch experiment=dpo
    python -m llm_jax.launch experiment=dpo from=runs/sft/default data.source=pairs.jsonl objective.beta=0.1

A record has "prompt", "chosen" and "rejected", or "chosen" and "rejected" as whole conversations. The reference is the
model that the run starts with (objective.reference=FOLDER: another); its log-probabilities are computed once, before the
first step. objective.loss=ipo and others choose the loss (docs/post_training.md).
Without from=, the model of experiment=sft learns from generated tasks, each with a right and a wrong answer, in a minute or
two on two CPU cores.
Expected: at step 0 the loss is ln 2 = 0.693 and the margin 0; then the margin and the accuracy rise, and the
log-probabilities of both answers mostly fall.
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.objective.dpo import DPO
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig, to_be_given_or
from llm_jax.train.optimizer import OptimizerConfig

AFTER_SFT = (
    "from=runs/sft/default",
    "data.source=task_pairs",
    "objective.sft=1",
    "train.steps=60",
    "train.batch_size=16",
    "train.sequence_length=256",
    "optimizer.learning_rate=1e-4",
    "evaluate.every=20",
    "sample.tokens=48",
)
"""In place of from=...: the small model of experiment=sft, and generated pairs."""


def experiment() -> Experiment:
    return Experiment(
        layout=preset("data_parallel"),
        objective=DPO(),
        data=DataConfig(source="pairs.jsonl", held_out_fraction=0.05),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-6, weight_decay=0.0),
        train=TrainConfig(
            start_from=to_be_given_or(*AFTER_SFT), steps=200, batch_size=8, sequence_length=1024
        ),
        evaluate=EvaluateConfig(every=50, batches=8, final_batches=None),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(tokens=0),
    )
