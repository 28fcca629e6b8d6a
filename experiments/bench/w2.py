"""W2, a standard workload for measuring the train step: GPT-2-like, 13.9 M parameters.

    python tools/bench_train_step.py experiment=bench/w2
    python -m llm_jax.launch experiment=bench/w2      (trains it on the standard library)

Six layers of 384, GELU 1536, learned positions, LayerNorm, biases, tied embeddings, vocabulary 8192; 8
sequences of 256, float32, AdamW, clip 1.0. Expected on two CPU cores: above 1,340 tokens/s and 55 % of the
machine's matrix-product peak.
"""

import dataclasses

from llm_jax.experiment import Experiment, load_experiment
from llm_jax.model.config import ModelConfig


def experiment() -> Experiment:
    return dataclasses.replace(
        load_experiment("bench/w1"),
        name="w2",
        model=ModelConfig(
            layers=6,
            embed=384,
            heads=6,
            mlp=1536,
            vocab=8192,
            activation="gelu",
            position="learned",
            positions=256,
            norm="layer",
            bias_qkv=True,
            bias_out=True,
            bias_mlp=True,
            attention="blocked",
            scan_layers=False,
        ),
    )
