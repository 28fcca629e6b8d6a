"""A model that is there goes on learning, from another corpus: a run's, or one that was loaded.

    python -m llm_jax.launch experiment=quickstart
    python -m llm_jax.launch experiment=continue_pretraining from=runs/quickstart/default data.source=german.jsonl run_dir=runs/german/first

The model's shape, its tokenizer and its newest weights are those of the folder; the optimizer begins anew, so the learning rate is warmed up
again. It is a third of what the model was trained with: enough to learn the new text, little enough not to forget the old at once.
What counts is said by evaluation on both: `python -m llm_jax.evaluate RUN data.source=...` before and after.
"""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.train.config import TO_BE_GIVEN, CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        layout=preset("data_parallel"),
        data=DataConfig(source="stdlib", held_out_fraction=0.05),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=20),
        train=TrainConfig(start_from=TO_BE_GIVEN, steps=200, batch_size=8, sequence_length=256),
        evaluate=EvaluateConfig(every=50, batches=24, final_batches=None),
        checkpoint=CheckpointConfig(every=50),
        sample=SampleConfig(tokens=60),
    )
