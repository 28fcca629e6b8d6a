"""The last step of a run: summary.json and the loss curve."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax

from llm_jax.core.console import Console
from llm_jax.core.errors import EXIT_DIVERGED
from llm_jax.core.files import write_json
from llm_jax.core.format import short
from llm_jax.model import accounting
from llm_jax.model.accounting import active_parameters
from llm_jax.run.header import closing
from llm_jax.run.prepare import RunPlan
from llm_jax.train import metrics
from llm_jax.train.run_state import RunState


def write_summary(
    plan: RunPlan,
    running: RunState,
    peak: float | None,
    code: int,
    console: Console,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes summary.json, with `more` in it, and the loss curve; logs the results of a finished run."""
    run_dir = plan.run_dir
    summary = summarise(plan, running, peak) | dict(more or {})
    summary["state"] = {0: "finished", EXIT_DIVERGED: "diverged"}.get(code, "stopped")
    if running.diverged:
        summary["reason"] = running.diverged.partition(";")[0]
    curve = metrics.draw_loss_curve(
        run_dir,
        f"{plan.experiment.name}: {short(summary['parameters'])} parameters",
        plan.experiment.objective.unit,
    )
    metrics.draw_curves(run_dir, plan.experiment.objective.curves)
    summary |= running.goodput.summary()  # to the very end
    write_json(run_dir / "summary.json", summary)
    if code == 0:
        scores = {name: value for name, value in running.latest.items() if name.startswith("eval_")}
        line = plan.experiment.objective.line(scores)
        console.log(running.label + closing(summary, run_dir, curve, line))


def summarise(plan: RunPlan, running: RunState, peak: float | None) -> dict[str, Any]:
    """The keys of summary.json that other programs read."""
    experiment, latest, clock, place = plan.experiment, running.latest, running.clock, plan.place
    seconds = clock.seconds / clock.steps if clock.steps else None
    step = latest.get("step", 0)
    tokens = step * running.tokens_per_step
    counted = accounting.account(experiment.model, experiment.train.sequence_length, tokens)
    score = experiment.objective.score.name
    return {
        "experiment": experiment.name,
        **({"start_from": experiment.train.start_from} if experiment.train.start_from else {}),
        "step": step,
        **counted,
        "parameters_active": active_parameters(experiment.model, counted["parameters"]),
        "tokens": tokens,
        "unique_tokens": running.corpus.unique_tokens(step),
        "train_flops": running.flops_per_step * step,
        "train_loss": latest.get("train_loss"),
        "eval_loss": latest.get("eval_loss"),
        "eval_bits_per_byte": latest.get("eval_bits_per_byte"),
        **{name: latest.get(name) for name in [score] if name != "eval_loss"},
        "epochs": latest.get("epoch"),
        "bad_steps": latest.get("bad_steps", 0),
        "rollbacks": len(running.rollbacks.list),
        "batches_skipped": running.rollbacks.skipped,
        "tokens_per_second": running.tokens_per_step / seconds if seconds else None,
        "mfu": running.mfu(seconds) if seconds else None,
        "mfu_convention": "6 FLOPs per matmul weight and token, causal attention, over "
        "peak_flops_per_second of all devices",
        "peak_flops_per_second": peak,
        "first_step_seconds": clock.first_step_seconds,
        **running.goodput.summary(),
        "devices": place.mesh.size,
        "device_kind": place.mesh.devices.flat[0].device_kind,
        "mesh": ", ".join(f"{name}={size}" for name, size in place.mesh.shape.items()),
        "layout": experiment.layout.name,
        "jax": jax.__version__,
        "python": sys.version.split()[0],
    }
