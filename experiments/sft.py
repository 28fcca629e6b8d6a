"""Supervised fine-tuning: a model learns to answer, from conversations or prompts with answers.

    python -m llm_jax.launch experiment=sft
    python -m llm_jax.launch experiment=sft from=models/SmolLM2-135M-Instruct data.source=chats.jsonl

Records are told by their keys: {"messages": [...]}, or {"prompt": ..., "completion": ...}. The model's own chat template
writes them (chat.template=chatml or a file: another), and only what the model says is trained
(docs/post_training.md).
Without from=, the model of experiment=quickstart learns small generated tasks (data.source=tasks), in minutes on two
CPU cores.
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.objective.sft import SFT
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig, to_be_given_or
from llm_jax.train.optimizer import OptimizerConfig

QUICKSTART = (
    "from=runs/quickstart/default",
    "data.source=tasks",
    "chat.template=chatml",
    "tokenizer.control=['<|im_start|>', '<|im_end|>']",
    "train.steps=200",
    "train.batch_size=16",
    "train.sequence_length=256",
    "optimizer.learning_rate=3e-3",
    "evaluate.every=100",
)
"""In place of from=..., for a model so small that it must learn faster."""


def experiment() -> Experiment:
    return Experiment(
        layout=preset("data_parallel"),
        objective=SFT(),
        data=DataConfig(source="tasks", held_out_fraction=0.05),
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-5, weight_decay=0.0),
        train=TrainConfig(
            start_from=to_be_given_or(*QUICKSTART), steps=200, batch_size=8, sequence_length=512
        ),
        evaluate=EvaluateConfig(every=50, batches=8, final_batches=None, base_batches=16),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(prompts=(), tokens=48, temperature=0),
    )
