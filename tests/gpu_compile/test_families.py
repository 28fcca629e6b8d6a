"""Windows by layer and latent attention, compiled for GPUs: one fused kernel for each kind of layer, no array
of size sequence²."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest

from llm_jax.experiment import Experiment, resolved
from llm_jax.layout.presets import PRESETS
from llm_jax.model.config import LatentConfig, ModelConfig
from llm_jax.run.compile import compile_absent
from llm_jax.train.config import TrainConfig

pytestmark = pytest.mark.gpu_compile
LENGTH = 2048
MODEL = ModelConfig(
    layers=4, embed=256, heads=4, mlp=512, vocab=1024, attention="cudnn", max_segments=4, compute_dtype="bfloat16",
    window=256, window_layers=(0, 2),
    latent=LatentConfig(query_rank=128, kv_rank=64, nope_dim=64, rope_dim=32, value_dim=64),
)  # fmt: skip


def test_a_period_of_layers_has_a_fused_kernel_for_each_kind():
    train = TrainConfig(batch_size=4, sequence_length=LENGTH)
    step = compile_absent(
        resolved(
            Experiment(name="families", model=MODEL, layout=PRESETS["fsdp"], mesh={"data": 2}, train=train)
        ),
        "h100",
        2,
    )
    kernels = re.findall(r'custom_call_target="__cudnn\$(\w+)".*"sliding_window_length": ?(\d+)', step.text)
    counts = Counter(kernels)
    assert set(counts) == {
        (name, window) for name in ("fmhaSoftmax", "fmhaSoftmaxBackward") for window in ("0", "256")
    }
    assert len(set(counts.values())) == 1  # XLA may unroll the scan, all kinds alike
    assert all(
        math.prod(shape) < 4 * LENGTH**2 for _, shape in step.buffer_shapes() if shape.count(LENGTH) == 2
    )
