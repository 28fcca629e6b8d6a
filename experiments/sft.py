"""Supervised fine-tuning: a model learns to answer, from conversations or prompts with answers.

    python -m llm_jax.launch experiment=sft from=models/SmolLM2-135M-Instruct data.source=chats.jsonl

Records are told by their keys: {"messages": [...]}, or {"prompt": ..., "completion": ...}. The model's own chat template
writes them (chat.template=chatml or a file: another), and only what the model says is trained
(docs/post_training.md).
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.objective.sft import SFT
from llm_jax.train.config import TO_BE_GIVEN, CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        layout=preset("data_parallel"),
        objective=SFT(),
        data=DataConfig(source="chats.jsonl", held_out_fraction=0.05),
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-5, weight_decay=0.0),
        train=TrainConfig(start_from=TO_BE_GIVEN, steps=200, batch_size=8, sequence_length=512),
        evaluate=EvaluateConfig(every=50, batches=8, final_batches=None),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(tokens=0),
    )
