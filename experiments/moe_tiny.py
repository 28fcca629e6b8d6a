"""A small mixture of experts on Python code, to compare with a dense model of as many FLOPs per token.

    python -m llm_jax.launch experiment=moe_tiny
    python -m llm_jax.launch experiment=moe_tiny model.moe.experts=0 run_dir=runs/moe_tiny/dense

The quickstart's model with 8 experts of half its feed-forward width in every layer, of which a token uses 2:
the active parameters and the FLOPs per token are those of the quickstart, plus the router; the total of
parameters is larger. Biases, as in DeepSeek-V3, and a small loss keep loads even. The second command trains
the dense model in the same way.
Measured so far, on a busy machine: training loss 7.2 at step 23, 5.25 at step 181, largest load about twice
the mean. A whole run, and the comparison with the dense one, are still to be made.
"""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig, MoEConfig
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    experts = MoEConfig(experts=8, top_k=2, mlp=176, bias=True, balance_loss=0.001)
    return Experiment(
        model=ModelConfig(
            layers=4, embed=128, heads=8, mlp=352, attention="blocked", scan_layers=False, moe=experts
        ),
        layout=preset("data_parallel"),
        data=DataConfig(source="stdlib", held_out_fraction=0.05),
        tokenizer=TokenizerConfig(vocab=4096),
        optimizer=OptimizerConfig(name="muon", learning_rate=8e-3, warmup_steps=50),
        train=TrainConfig(steps=700, batch_size=8, sequence_length=256),
        evaluate=EvaluateConfig(every=200, batches=24, final_batches=None),
        checkpoint=CheckpointConfig(every=100),
        sample=SampleConfig(prompts=("", "def main(", '"""Return the'), tokens=60),
    )
