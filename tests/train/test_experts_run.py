"""Runs of a mixture of experts by the launcher: what they say, and that the routers' biases are part of their
state.
"""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np

from llm_jax.layout.presets import PRESETS
from llm_jax.model.config import MoEConfig
from tests.tiny_run import checkpoint, launch, losses, summary
from tests.training import SMALL, packed_batch, train

MOE = ("model.moe.experts=4", "model.moe.mlp=16", "model.moe.bias=true", "model.moe.bias_rate=0.01")
BIAS = "['parameters']['blocks']['mlp']['bias']"


def test_a_run_says_what_its_experts_do_and_goes_on_with_its_biases_here_and_on_another_layout(
    tiny, tmp_path, capsys
):
    run = (f"experiment={tiny}", "train.steps=6", "evaluate.every=0", *MOE)
    whole = tmp_path / "whole"
    assert launch(*run, f"run_dir={whole}") == 0
    out = capsys.readouterr().out
    assert "experts     2 of 4 of 16 in 2 layers, softmax router, dropless: " in out
    assert "  load " in out
    found = summary(whole)
    assert (
        found["parameters"] - found["parameters_active"] == 2 * 2 * 3 * 32 * 16
    )  # of each layer two experts of three matrices
    bias = checkpoint(whole, 6)[BIAS]
    assert np.abs(bias).max() >= 0.02
    for name, layout in (("here", ()), ("there", ("layout=expert", "mesh.data=2", "mesh.expert=2"))):
        moved = tmp_path / name
        shutil.copytree(whole, moved)
        shutil.rmtree(moved / "checkpoints" / "6")
        for file in ("summary.json", "metrics.jsonl"):
            (moved / file).unlink()
        assert launch(*run, f"run_dir={moved}", *layout) == 0
        ours = losses(moved)
        assert list(ours) == [5, 6]
        # the same numbers here; there float32 sums are in another order (tests/parity)
        np.testing.assert_allclose(
            list(ours.values()), [losses(whole)[s] for s in ours], rtol=1e-5 if layout else 0
        )
        np.testing.assert_allclose(checkpoint(moved, 6)[BIAS], bias, atol=1e-7)


def test_a_bad_step_does_not_move_the_biases():
    def batches(step):
        batch = packed_batch(step)
        return {**batch, "weights": np.where(batch["weights"] > 0, np.inf, 0).astype(np.float32)}

    model = dataclasses.replace(SMALL, moe=MoEConfig(experts=8, top_k=2, mlp=16, bias=True))
    history, state, _ = train(PRESETS["single"], {}, steps=1, model=model, batches=batches)
    assert history[0]["bad_steps"] == 1
    assert history[0]["expert_load_max"] > 1
    assert not np.asarray(state.parameters["blocks"]["mlp"]["bias"]).any()
