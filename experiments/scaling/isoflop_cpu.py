"""IsoFLOP curves on two CPU cores in under 20 minutes: four budgets, five sizes or more each, and a larger run predicted.

    python -m llm_jax.launch experiment=scaling/isoflop_cpu --dry-run
    python -m llm_jax.launch experiment=scaling/isoflop_cpu
    python -m llm_jax.launch experiment=scaling/isoflop_cpu          # killed or stopped: goes on, repeats no finished run

Corpus: the Python standard library (nothing is downloaded), 1,024 pieces: with a larger vocabulary the head would be most of these
small models. N counts the head, as do the budgets' FLOPs; the learning rate falls with N, and the warm-up grows with it.
Each curve has the five sizes around 10 tokens a parameter, and more where its minimum is at the edge.
"""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.scaling.designs import PowerRule, aspect, compute_optimal, geometric, isoflop, learning_rate, sizes, warmup_per_parameter
from llm_jax.scaling.grid import Grid, GridConfig
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig

CONVENTION = "6nd_with_head"
SIZES = sizes(aspect(layers=3, head_dim=8), geometric(25e3, 3e6, 12), CONVENTION)


def experiment() -> Grid:
    base = Experiment(
        model=ModelConfig(attention="blocked", scan_layers=False),
        layout=preset("single"),
        data=DataConfig(source="stdlib", held_out_fraction=0.05),
        tokenizer=TokenizerConfig(vocab=1024),
        optimizer=OptimizerConfig(name="adamw", schedule="cosine"),
        train=TrainConfig(batch_size=8, sequence_length=128, batch_sha=False),
        evaluate=EvaluateConfig(every=0, final_batches=64),
        checkpoint=CheckpointConfig(every=500, keep=1, keep_best=False),
    )
    return Grid(
        base,
        isoflop([0.25e12, 0.5e12, 1e12, 2e12], SIZES, convention=CONVENTION, per_curve=5, tokens_per_parameter=10, refills=2),
        rules=(learning_rate(PowerRule(at_million=3e-3, exponent=-0.3, convention=CONVENTION)), warmup_per_parameter(0.5, CONVENTION)),
        held_out=compute_optimal([5e12], SIZES, convention=CONVENTION, tokens_per_parameter=10),
        method="isoflop",
        convention=CONVENTION,
        settings=GridConfig(mfu=0.15),  # so small matrices reach little of the peak
    )
