"""IsoFLOP curves on two CPU cores in under 20 minutes: four budgets, and a larger run predicted.

Each budget has five sizes or more.

    python -m llm_jax.launch experiment=scaling/isoflop_cpu --dry-run
    python -m llm_jax.launch experiment=scaling/isoflop_cpu
    python -m llm_jax.launch experiment=scaling/isoflop_cpu   # rerun to resume: skips finished runs

Corpus: the Python standard library (no download), with a vocabulary of 512: with a larger one the head would
be most of these small models. N counts the head, as do the budgets' FLOPs. muP lets one learning rate serve
all widths: the best of width 64 (docs/mup.md). Each curve has the five sizes around 30 tokens a parameter,
and more where its minimum is at the edge.
"""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.scaling.designs import aspect, compute_optimal, geometric, isoflop, sizes, warmup_fraction
from llm_jax.scaling.grid import Grid, GridConfig
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig

CONVENTION = "6nd_with_head"
SIZES = sizes(aspect(layers=2, head_dim=8), geometric(14e3, 1.5e6, 14), CONVENTION)
RATIO = 30.0


def experiment() -> Grid:
    base = Experiment(
        model=ModelConfig(
            attention="blocked", scan_layers=False, parametrization="mup", base_embed=64, init_std=1 / 16
        ),
        layout=preset("single"),
        data=DataConfig(source="stdlib", held_out_fraction=0.05),
        tokenizer=TokenizerConfig(vocab=512),
        optimizer=OptimizerConfig(name="adamw", learning_rate=2**-7, schedule="cosine"),
        train=TrainConfig(batch_size=8, sequence_length=128, batch_sha=False),
        evaluate=EvaluateConfig(every=0, final_batches=128),
        checkpoint=CheckpointConfig(every=1000, keep=1, keep_best=False),
    )
    return Grid(
        base,
        isoflop(
            [0.1e12, 0.25e12, 0.6e12, 1.5e12],
            SIZES,
            convention=CONVENTION,
            per_curve=5,
            tokens_per_parameter=RATIO,
            refills=2,
        ),
        rules=(warmup_fraction(0.05),),
        held_out=compute_optimal([5e12], SIZES, convention=CONVENTION, tokens_per_parameter=RATIO),
        method="isoflop",
        convention=CONVENTION,
        settings=GridConfig(mfu=0.15),  # small matrices reach little of the peak
    )
