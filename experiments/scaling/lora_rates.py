"""Which learning rate does LoRA want? Ranks 1, 4 and 16, and all weights trained, at five learning rates each.

    python -m llm_jax.launch experiment=quickstart                   # the base: runs/quickstart/default
    python -m llm_jax.launch experiment=scaling/lora_rates --dry-run
    python -m llm_jax.launch experiment=scaling/lora_rates

Supervised fine-tuning of the quickstart's model on the generated tasks, 200 steps, as `experiment=sft` without
further words. report.html in the run folder has the held-out loss over rank and learning rate as a heat map. Expected
(Schulman et al. 2025, "LoRA Without Regret"): the best rate of LoRA is about ten times that of full fine-tuning,
whatever the rank. Found with train.steps=100: three times, whatever the rank (docs/post_training.md).
"""

import dataclasses

from llm_jax.experiment import load_experiment
from llm_jax.run.initial_weights import with_command_line
from llm_jax.scaling.grid import Grid, over, product

ALL_WEIGHTS = {"adapter.rank": 0}
ADAPTERS = [
    {"adapter.rank": rank, "adapter.alpha": 32, "train.trainable": ["embedding"]} for rank in (1, 4, 16)
]
"""Beside an adapter the embedding is trained: it has the rows of the new control tokens."""
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def experiment() -> Grid:
    plain = [("evaluate.base_batches", "0"), ("sample.tokens", "0"), ("checkpoint.every", "1000")]
    sft = with_command_line(load_experiment("sft"), plain)
    base = dataclasses.replace(sft, name="", run_dir="")
    return Grid(base, product([ALL_WEIGHTS, *ADAPTERS], over("optimizer.learning_rate", RATES)))
