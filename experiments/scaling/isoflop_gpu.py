"""IsoFLOP curves for one GPU-day: five budgets from 1e17 to 1.6e18 FLOPs, and a run of 5e18 predicted.
Planned, not yet run.

    python -m llm_jax.launch experiment=scaling/isoflop_gpu --dry-run grid.hardware=h100
    python -m llm_jax.launch experiment=scaling/isoflop_gpu data.source=tfds:NAME

Corpus: set data.source= to a large one (5 billion tokens for the smallest model at the largest budget); the
default, the standard library, would be repeated thousands of times. Warm-up grows with N and the rate falls
with it (Porian et al. 2024 find that both matter to the exponent). docs/scaling.md has the table of points.
"""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.scaling.designs import (
    PowerRule,
    aspect,
    compute_optimal,
    geometric,
    isoflop,
    learning_rate,
    sizes,
    warmup_per_parameter,
)
from llm_jax.scaling.grid import Grid, GridConfig
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig

CONVENTION = "6nd_with_head"
SIZES = sizes(aspect(ratio=64, head_dim=64), geometric(8e6, 600e6, 15), CONVENTION)


def experiment() -> Grid:
    base = Experiment(
        model=ModelConfig(compute_dtype="bfloat16", attention="cudnn", qk_norm="head"),
        layout=preset("data_parallel"),
        data=DataConfig(source="stdlib"),
        tokenizer=TokenizerConfig(vocab=32000),
        objective=NextToken(chunk=4096),
        optimizer=OptimizerConfig(name="adamw", schedule="cosine", beta2=0.95),
        train=TrainConfig(batch_size=128, sequence_length=1024),
        evaluate=EvaluateConfig(every=0, final_batches=64),
        checkpoint=CheckpointConfig(every=1000, keep=1, keep_best=False),
    )
    return Grid(
        base,
        isoflop(
            [1e17, 2e17, 4e17, 8e17, 1.6e18],
            SIZES,
            convention=CONVENTION,
            per_curve=6,
            tokens_per_parameter=20,
            refills=2,
        ),
        rules=(
            learning_rate(PowerRule(at_million=1e-2, exponent=-0.25, convention=CONVENTION)),
            warmup_per_parameter(1.0, CONVENTION),
        ),
        held_out=compute_optimal([5e18], SIZES, convention=CONVENTION),
        method="isoflop",
        convention=CONVENTION,
        settings=GridConfig(hardware="h100", mfu=0.4),
    )
