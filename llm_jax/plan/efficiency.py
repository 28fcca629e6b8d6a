"""The share of datasheet rates that programs reach: the few numbers that a prediction depends on.

`EXPECTED` is the prediction, `BEST` and `WORST` its bounds. One set for all devices, models and layouts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Efficiency:
    """Shares of the hardware's rates, and overheads."""

    name: str
    """Name of this set of rates."""
    matmul: float
    """Share of peak FLOP/s in matrix products and convolutions."""
    attention_forward: float
    """Share of peak FLOP/s in fused attention; FLOPs that the mask hides don't count."""
    attention_backward: float
    """Share of peak FLOP/s in the backward kernel of fused attention; its recomputed scores count."""
    memory: float
    """Share of the datasheet's memory bandwidth."""
    node: float
    """Share of the bandwidth within a node."""
    network: float
    """Share of the bandwidth across nodes."""
    launch: float
    """Seconds from the end of a kernel to the start of the next."""
    slowdown: float
    """Relative increase of a kernel's duration while a collective, which uses cores and memory bandwidth,
    runs beside it."""


BEST = Efficiency("best", 0.80, 0.65, 0.55, memory=0.92, node=0.82, network=0.92, launch=1e-6, slowdown=0.0)
"""The rates that single kernels and libraries reach. Large bf16 products on an H200: 80 % of the datasheet
(790 TFLOP/s, measured). Attention on an H100, causal, 8k tokens: about 65 % forward, 55 % backward
(FlashAttention-3, Shah et al. 2024, figures 5 and 6). NCCL within a node of 8 H100: 360 to 370 of 450
GB/s."""


def step_efficiency(name: str, share: float, **others: float) -> Efficiency:
    """The rates of a whole train step, on hot devices that all run at once: those of BEST's kernels, times
    `share`."""
    kernels = {
        rate: share * getattr(BEST, rate)
        for rate in ("matmul", "attention_forward", "attention_backward", "memory")
    }
    return dataclasses.replace(BEST, name=name, **kernels, **others)


EXPECTED = step_efficiency("expected", 0.70, node=0.75, network=0.80, launch=2e-6, slowdown=0.15)
"""The share is calibrated to minimise the largest error on three published runs (docs/plan.md: Llama 3 8B on
8 H100 by torchtitan, Llama 2 7B on 8 and Llama 3 70B on 128 by MaxText). The rest is assumed: links a little
below BEST, and a collective's kernels use 15 % of a device."""
WORST = step_efficiency("worst", 0.58, node=0.60, network=0.60, launch=4e-6, slowdown=0.30)
"""Below the measured rates of all three of those runs."""
SETS = (BEST, EXPECTED, WORST)

COLLECTIVE_LAUNCH = 8.4e-6
"""Seconds before a collective sends anything. Source: NCCL, src/graph/tuning.cc, base latency of rings with
large messages."""
HOST_BANDWIDTH = 55e9
"""Bytes/s between a device and its host, one direction: PCIe 5.0 x16 (63e9) less the overhead of
transfers."""
HIGHEST_PRECISION = 8.0
"""Passes of a float32 product without TF32 (NVIDIA A100: 156 against 19.5 TFLOP/s, H100: 495 against 67)."""
HOST_SYNC = 20e-6
"""Extra seconds of each trip of a loop whose condition the host reads from the device (assumed: a copy and
the launches after it)."""
