"""Losses and gradients that are not finite: skipped on the device, counted, and after N in a row the run
stops."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llm_jax.core.files import read_json_lines
from tests.tiny_run import checkpoint, launch, steps_saved, summary, write_experiment

# An objective whose loss is always NaN, and an optimizer whose updates are infinite from some step on.
BAD = """
import jax.numpy as jnp
from dataclasses import dataclass

from llm_jax.objective.next_token import NextToken
from llm_jax.train.optimizer import adamw, register as register_optimizer


@dataclass(frozen=True)
class AlwaysNan(NextToken):
    name: str = "always_nan"

    def loss(self, policy, frozen, batch):
        loss = super().loss(policy, frozen, batch)
        return loss._replace(total=loss.total * jnp.nan)


def bad_update(first, last):
    def builder(config, info):
        import optax

        inner = adamw(config, info)

        def update(grads, state, parameters):
            step, inner_state = state
            updates, inner_state = inner.update(grads, inner_state, parameters)
            import jax

            bad = (step >= first) & (step < last)
            return jax.tree.map(lambda u: jnp.where(bad, jnp.inf, u), updates), (step + 1, inner_state)

        return optax.GradientTransformation(lambda p: (jnp.zeros((), jnp.int32), inner.init(p)), update)

    return builder


register_optimizer("bad_forever")(bad_update(4, 10**6))
"""


def test_every_loss_nan_stops_the_run_with_3_and_valid_json(tiny, tmp_path, capsys):
    path = write_experiment(tmp_path, "bad", BAD, objective="AlwaysNan()")
    run_dir = tmp_path / "run"
    assert launch(f"experiment={path}", f"run_dir={run_dir}", "train.stop_after_bad_steps=3") == 3
    out = capsys.readouterr()
    assert out.err == ""
    assert "step 3: loss nan" in out.out
    assert "the run diverged: 3 updates in a row skipped at step 3" in out.out
    assert "last good checkpoint: none" in out.out
    assert summary(run_dir) | {"state": "diverged", "step": 3, "train_loss": None, "bad_steps": 3} == summary(
        run_dir
    )
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [line["bad_steps"] for line in read_json_lines(run_dir / "metrics.jsonl")] == [1, 2, 3]
    assert (run_dir / "loss.png").stat().st_size > 0


def test_the_last_good_checkpoint_is_kept_and_a_restart_warns(tiny, tmp_path, capsys):
    path = write_experiment(
        tmp_path, "bad", BAD, optimizer="dataclasses.replace(base_.optimizer, name='bad_forever')"
    )
    run_dir = tmp_path / "run"
    arguments = (
        f"experiment={path}",
        f"run_dir={run_dir}",
        "train.stop_after_bad_steps=3",
        "train.steps=20",
        "checkpoint.every=1",
        "evaluate.every=0",
    )
    assert launch(*arguments) == 3
    # A skipped update doesn't advance the counter in the optimizer's state, so it stays at 4 and every later
    # step is bad.
    assert steps_saved(run_dir) == [3, 4]  # the bad steps 5 to 7 replaced none of them
    assert "last good checkpoint: 4" in capsys.readouterr().out
    good = checkpoint(run_dir, 4)
    assert all(np.isfinite(values).all() for values in good.values())
    assert launch(*arguments) == 3
    out = capsys.readouterr().out
    assert "the last start diverged at step 7" in out
    assert "resuming at step 4" in out
    assert steps_saved(run_dir) == [3, 4]


def test_one_bad_step_changes_nothing_but_the_counters():
    import jax
    import jax.numpy as jnp

    from llm_jax.layout.presets import PRESETS
    from tests.training import packed_batch, train

    def batches(step):
        batch = packed_batch(step)
        if step == 2:
            batch["weights"] = np.where(batch["weights"] > 0, np.inf, 0).astype(np.float32)
        return batch

    history, state, _ = train(PRESETS["single"], {}, steps=3, batches=batches, ema_decay=0.9)
    _, before, _ = train(PRESETS["single"], {}, steps=2, batches=batches, ema_decay=0.9)
    assert [m["bad_steps"] for m in history] == [0, 0, 1]
    assert (int(state.step), int(state.bad_in_a_row)) == (3, 1)
    for ours, theirs in zip(
        jax.tree.leaves((state.parameters, state.moments, state.average)),
        jax.tree.leaves((before.parameters, before.moments, before.average)),
        strict=True,
    ):
        if jnp.issubdtype(ours.dtype, jnp.floating):
            np.testing.assert_allclose(
                ours, theirs, rtol=1e-4, atol=1e-6
            )  # 3 and 2 steps have schedules of another length
    history, state, _ = train(PRESETS["single"], {}, steps=4, batches=batches)
    assert (int(state.bad_steps), int(state.bad_in_a_row)) == (1, 0)
    assert np.isfinite(history[-1]["train_loss"])
