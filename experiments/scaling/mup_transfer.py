"""Does the best learning rate transfer to wider models? Widths 64 to 512, standard and muP.

    python -m llm_jax.launch experiment=scaling/mup_transfer --dry-run
    python -m llm_jax.launch experiment=scaling/mup_transfer grid.points=4     # one of them
    python -m llm_jax.launch experiment=scaling/mup_transfer
    python -m llm_jax.scaling.transfer data=runs/scaling/mup_transfer/default/runs.csv out=transfer.png

Corpus: the Python standard library (no download). Two layers, heads of 32, 150 steps of 1,024 tokens. The
parametrisations are identical at width 64. Expected (docs/mup.md): in muP 2^-7 is the best rate at every
width; in the standard parametrisation the best rate falls with the width. 117 TFLOPs, three quarters of them
for the width 512: roughly an hour on two idle CPU cores.
"""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.scaling.designs import mup_transfer
from llm_jax.scaling.grid import Grid
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Grid:
    base = Experiment(
        model=ModelConfig(
            layers=2, embed=64, heads=2, activation="gelu", scan_layers=False, init_std=1 / 16, base_embed=64
        ),
        layout=preset("single"),
        data=DataConfig(source="stdlib", held_out_fraction=0.05),
        tokenizer=TokenizerConfig(vocab=512),
        optimizer=OptimizerConfig(learning_rate=2**-7, warmup_steps=15),
        train=TrainConfig(steps=150, batch_size=8, sequence_length=128, batch_sha=False),
        evaluate=EvaluateConfig(every=0, final_batches=16),
        checkpoint=CheckpointConfig(every=150, keep=1, keep_best=False),
        sample=SampleConfig(tokens=0),
    )
    return Grid(base, mup_transfer([64, 128, 256, 512], [2.0**-power for power in range(11, 4, -1)]))
