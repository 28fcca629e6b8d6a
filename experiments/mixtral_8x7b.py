"""Mixtral 8x7B: the published shape, 8 experts of which each token uses 2, sequence 4096, to plan with.

    python -m llm_jax.plan experiment=mixtral_8x7b devices=64 hardware=h100
    python -m llm_jax.plan experiment=mixtral_8x7b devices=64 hardware=h100 layout=expert_tensor mesh.expert=8 mesh.tensor=2
    python -m llm_jax.plan experiment=mixtral_8x7b devices=64 hardware=h100 layout=all

Shape: Jiang et al. 2024, table 1 (46,702,792,704 parameters, of which a token uses 12.9 B), and the
coefficient of the balancing loss in its published configuration. It was trained with sequences of 32,768;
speeds are usually published for 4,096. Each expert takes at most 1.25 times its share of a sequence's tokens,
so shapes are fixed and can be planned. (dispatch=dropless runs loops whose trips depend on the tokens.)
Batch: 256 rows of 4,096 are a million tokens.
Expected: not trained here.
"""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig, MoEConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        model=ModelConfig(
            layers=32, embed=4096, heads=32, kv_heads=8, mlp=14336, vocab=32000, tied_embeddings=False, rope_theta=1e6,
            moe=MoEConfig(experts=8, top_k=2, balance_loss=0.02, z_loss=0.0, dispatch="capacity", capacity_factor=1.25),
            compute_dtype="bfloat16", attention="cudnn", remat="query,key,value,attention",
        ),
        layout=preset("expert"),
        mesh={"expert": 8},
        data=DataConfig(source="stdlib"),
        tokenizer=TokenizerConfig(vocab=32000),
        objective=NextToken(chunk=4096),
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-4, warmup_steps=2000, clip_norm=1.0),
        train=TrainConfig(steps=100_000, batch_size=256, sequence_length=4096),
        evaluate=EvaluateConfig(every=1000, batches=4, final_batches=16),
        checkpoint=CheckpointConfig(every=1000),
    )  # fmt: skip
