"""W3, a standard workload for GPUs since Hopper: Llama-like, 1.1 B parameters, sequence 4096, bfloat16.

    XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 python -m llm_jax.launch experiment=bench/w3
    python -m llm_jax.plan experiment=bench/w3 devices=1 hardware=h200 model.max_segments=5    # its memory, without a GPU

The batch fills one H200 (JAX's default is 0.75 of the memory): 13.2 GB of state, 113.5 GB of temporaries, up
to 5 GB of cuDNN's workspace, of 151.4 GB. `remat` keeps the result of every matrix product and of attention
and recomputes only the operations between (norms, rotations, SwiGLU): 0.9 MB per token, where `none` keeps
3.0 MB. On 80 GB (H100) use train.batch_size=12. On 8 GPUs the weights are split (layout fsdp):
train.batch_size=224.

Corpus: the Python standard library, a stand-in that every machine has: 2 M tokens, so this measures speed,
not language.
Expected: not yet measured on a GPU. The compiled step is tested (tests/gpu_compile/test_w3.py).
"""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.objective.next_token import NextToken
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        model=ModelConfig(
            layers=22, embed=2048, heads=32, kv_heads=4, mlp=5632, vocab=32000, tied_embeddings=False, compute_dtype="bfloat16",
            attention="cudnn", remat="query,key,value,attention,attention_out,mlp_gate,mlp_up",
        ),
        layout=preset("fsdp"),
        data=DataConfig(source="stdlib"),
        tokenizer=TokenizerConfig(vocab=32000),
        objective=NextToken(chunk=4096),
        optimizer=OptimizerConfig(name="adamw", learning_rate=4e-4, warmup_steps=50, clip_norm=1.0),
        train=TrainConfig(steps=100, batch_size=28, sequence_length=4096),
        evaluate=EvaluateConfig(every=0, final_batches=1),
        checkpoint=CheckpointConfig(every=100, keep=1, keep_best=False),
        sample=SampleConfig(tokens=0),
    )  # fmt: skip
