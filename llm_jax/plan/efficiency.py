"""How much of a datasheet's rates programs reach: the few figures that a prediction rests on, in one place.

`EXPECTED` is the prediction, `BEST` and `WORST` its bounds. One set for all devices, models and layouts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Efficiency:
    """Shares of the hardware's rates, and what things cost beside."""

    name: str
    """Of the set."""
    matmul: float
    """Of peak FLOP/s: matrix products and convolutions."""
    attention_forward: float
    """Of peak FLOP/s: fused attention, counted without what the mask hides."""
    attention_backward: float
    """The same of its backward kernel, which computes the scores again (counted)."""
    memory: float
    """Of memory bandwidth."""
    node: float
    """Of the links within a node."""
    network: float
    """Of the links across nodes."""
    launch: float
    """Seconds between kernels."""
    slowdown: float
    """How much longer a kernel takes while a collective runs beside it, which takes cores and memory bandwidth from it."""


# Large bf16 products alone reach 80 % of an H200's datasheet (measured: 790 TFLOP/s); in a train step the chip is hot, its clock lower and the
# products smaller. Fused attention: FlashAttention-3 and cuDNN on an H100, causal, 8k tokens: 55 to 65 % forward, 45 to 55 % backward (Shah et al.
# 2024, figures 5 and 6). NCCL on 8 H100: 360 of 450 GB/s in all-gathers and reduce-scatters of large messages (nccl-tests, bus bandwidth).
BEST = Efficiency("best", 0.80, 0.65, 0.55, memory=0.92, node=0.82, network=0.92, launch=1e-6, slowdown=0.0)
EXPECTED = Efficiency("expected", 0.58, 0.45, 0.37, memory=0.72, node=0.75, network=0.80, launch=2e-6, slowdown=0.15)
WORST = Efficiency("worst", 0.48, 0.35, 0.28, memory=0.60, node=0.60, network=0.60, launch=4e-6, slowdown=0.30)
SETS = (BEST, EXPECTED, WORST)

COLLECTIVE_LAUNCH = 8.4e-6
"""Seconds before a collective sends anything. Source: NCCL, src/graph/tuning.cc, base latency of rings with large messages."""
HOST_BANDWIDTH = 55e9
"""Bytes/s between a device and its host, one direction: PCIe 5.0 x16 (63e9) less what transfers reach."""
HIGHEST_PRECISION = 8.0
"""How much longer a float32 product takes without TF32 (NVIDIA A100: 156 against 19.5 TFLOP/s, H100: 495 against 67)."""
HOST_SYNC = 20e-6
"""Seconds of a trip of a loop whose end the host has to ask the device for (assumed: a copy back and the launches after it)."""
