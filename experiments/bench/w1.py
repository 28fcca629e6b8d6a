"""W1, a standard workload for measuring the train step: Llama-like, 13.8 M parameters.

    python tools/bench_train_step.py experiment=bench/w1
    python -m llm_jax.launch experiment=bench/w1      (trains it on the standard library)

Six layers of 384, SwiGLU 1024, RoPE, RMSNorm, tied embeddings, vocabulary 8192; 8 sequences of 256, float32,
AdamW, clip 1.0.
Expected on two CPU cores: above 1,340 tokens/s and 55 % of the machine's matrix-product peak; docs/log.md has
the measurements.
"""

from llm_jax.data import TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.train.config import EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        model=ModelConfig(
            layers=6, embed=384, heads=6, mlp=1024, vocab=8192, attention="blocked", scan_layers=False
        ),
        layout=preset("data_parallel"),
        tokenizer=TokenizerConfig(vocab=8192),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        train=TrainConfig(steps=300, batch_size=8, sequence_length=256),
        evaluate=EvaluateConfig(every=100, batches=16),
        sample=SampleConfig(prompts=("def main(",), tokens=60),
    )
