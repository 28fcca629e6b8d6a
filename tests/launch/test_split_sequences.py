"""A whole run under a layout that splits sequences: training, evaluation and samples are those of
one device.
"""

from __future__ import annotations

import pytest

from tests.tiny_run import launch, losses, summary

SAMPLES = ("sample.tokens=5", "sample.temperature=0", "sample.prompts=[a, of the]")


@pytest.mark.parametrize(
    "layout", ["context_ring", pytest.param("fsdp_tensor_sequence", marks=pytest.mark.slow)]
)
def test_losses_evaluation_and_samples_are_those_of_one_device(tiny, tmp_path, layout):
    runs = {}
    for name in ("single", layout):
        runs[name] = run = tmp_path / name
        assert (
            launch(f"experiment={tiny}", f"layout={name}", f"run_dir={run}", "train.steps=4", *SAMPLES) == 0
        )
    ours, theirs = runs[layout], runs["single"]
    # float32 sums in another order: 1e-7 a step, see tests/parity
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)
    assert summary(ours)["eval_bits_per_byte"] == pytest.approx(
        summary(theirs)["eval_bits_per_byte"], rel=1e-5
    )
    assert (ours / "samples.txt").read_text() == (theirs / "samples.txt").read_text()
