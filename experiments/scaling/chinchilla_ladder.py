"""A ladder for a Slurm cluster: Hoffmann et al.'s shapes, 44 M to 724 M, 10 to 80 tokens a parameter.

Planned, not yet run. Each shape is trained with 10, 20, 40 and 80 tokens a parameter.

    python -m llm_jax.launch experiment=scaling/chinchilla_ladder --dry-run
    python -m llm_jax.launch experiment=scaling/chinchilla_ladder submit=slurm slurm.gpus_per_node=8 \\
        slurm.time=24:00:00 --dry-run

With warm-up, a constant rate and a short decay (wsd) the four horizons of a size are one trunk and three
branches, which cost only their decay: --dry-run prints the hours of each without its trunk. Fitted by
L = E + A/N^alpha + B/D^beta.

Corpus: set data.source=; the default, the standard library, is a placeholder.
"""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.scaling.designs import PowerRule, chinchilla_sizes, ladder, learning_rate, warmup_per_parameter
from llm_jax.scaling.grid import Grid, GridConfig
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig

SIZES = [size for i, size in enumerate(chinchilla_sizes()) if i in (0, 2, 5, 8, 11, 14, 19, 21)]


def experiment() -> Grid:
    base = Experiment(
        model=ModelConfig(
            compute_dtype="bfloat16",
            attention="cudnn",
            activation="gelu",
            remat="query,key,value,attention,attention_out,mlp_up",
        ),
        layout=preset("fsdp"),
        data=DataConfig(source="stdlib"),
        tokenizer=TokenizerConfig(vocab=32000),
        objective=NextToken(chunk=4096),
        optimizer=OptimizerConfig(name="adamw", schedule="wsd", decay_fraction=0.2, final_fraction=0.0),
        train=TrainConfig(batch_size=256, sequence_length=2048),
        evaluate=EvaluateConfig(every=0, final_batches=32),
        checkpoint=CheckpointConfig(every=500, keep=1, keep_best=False),
    )
    return Grid(
        base,
        ladder(SIZES, [10, 20, 40, 80], "6nd_with_head"),
        rules=(learning_rate(PowerRule(at_million=1e-2, exponent=-0.25)), warmup_per_parameter(1.0)),
        method="parametric",
        trunks=True,
        settings=GridConfig(hardware="h100", devices=8, mfu=0.4),
    )
