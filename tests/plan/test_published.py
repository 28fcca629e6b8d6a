"""Predictions compared with published measurements: the rows of docs/plan.md, with one calibration for
all."""

from __future__ import annotations

import pytest

from llm_jax.layout.hardware import hardware
from llm_jax.plan.plan import make_plan
from llm_jax.run.initial_weights import experiment_from_pairs

PUBLISHED = {
    # NVIDIA dgxc-benchmarking, maxtext/README_70b.md: 15.563 s a step
    "llama3_70b": (128, [("train.batch_size", "256")], 1052.8),
    # torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, table 1
    "llama3_8b": (8, [("train.batch_size", "16")], 6667.0),
    # NVIDIA JAX-Toolbox, docs/frameworks/maxtext/README.md: 22.19 sequences a second
    "llama2_7b": (8, [], 22.19 * 4096 / 8),
}
"""Devices, overrides, and measured tokens/s per GPU."""


@pytest.mark.gpu_compile
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_speed_is_predicted_within_a_quarter_and_between_the_bounds(name, gpu_compiler):
    devices, overrides, measured = PUBLISHED[name]
    experiment = experiment_from_pairs([("experiment", name), ("model.max_segments", "1"), *overrides])
    plan, _ = make_plan(experiment, hardware("h100"), devices)
    assert plan.tokens_per_second_per_device == pytest.approx(measured, rel=0.25)
    seconds = plan.analysis.step_seconds
    assert seconds["best"] <= plan.tokens / devices / measured <= seconds["worst"]
    assert plan.fits  # it ran
    assert plan.analysis.attention_kernels.keys() == {"cudnn forward", "cudnn backward"}
