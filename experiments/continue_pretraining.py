"""Continued pretraining: trains the model of a run folder or of a Hugging Face folder on another corpus.

    python -m llm_jax.launch experiment=quickstart
    python -m llm_jax.launch experiment=continue_pretraining from=runs/quickstart/default data.source=german.jsonl run_dir=runs/german/first

The model's shape, tokenizer and latest weights come from the folder; the optimizer state is new, so the
learning rate is warmed up again.
Expected: the first loss is that of the folder's model on the new text, not that of random weights (ln 4096 =
8.3).

Tried with a quickstart of 150 steps of 4 sequences (held-out loss 6.26 on the standard library, 7.31 on 1,776
German sentences), trained for 60 more steps on the sentences: 7.34 at the first step, and at the end 4.79 on
held-out German and 7.56 on the standard library, most of which was forgotten. With
data.mixture='{german.txt: 3, stdlib: 1}' the losses were 4.99 and 6.31 (`python -m llm_jax.evaluate RUN
data.source=...`).
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
