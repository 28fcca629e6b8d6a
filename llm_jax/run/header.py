"""The log lines before the first step of a run, and after its last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from llm_jax.core.format import clock, format_loss, short
from llm_jax.experiment import Experiment
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import describe_mesh
from llm_jax.model.accounting import active_parameters
from llm_jax.model.config import ModelConfig
from llm_jax.run.prepare import RunPlan
from llm_jax.train.flops import flops_per_token
from llm_jax.train.optimizer import warmup, warmup_fault
from llm_jax.train.state import TrainModel


def header(plan: RunPlan, peak: float | None) -> str:
    """The header of a run: model, layout, precision, batch, FLOPs, peak, optimizer."""
    experiment, program = plan.experiment, plan.model
    m, t, mesh = experiment.model, experiment.train, program.place.mesh
    objective, device = experiment.objective, mesh.devices.flat[0]
    tokens = objective.tokens_per_step(t.batch_size, t.sequence_length)
    frozen = {role: model.config for role, model in plan.frozen.items()}
    flops = flops_per_token(objective, program, t.sequence_length, frozen)
    total = flops * tokens * t.steps
    partly = program.trained != program.names
    epochs = plan.corpus.epoch(t.steps - 1)
    lines = {
        "experiment": experiment.name,
        "model": f"{m.layers} layers, embed {m.embed}, {m.heads} heads ({m.kv_heads} kv) of {m.head_dim}, "
        f"{m.activation} {m.mlp}, "
        f"{m.position}, {m.norm} norm, vocabulary {m.vocab}: {short(program.parameter_count())} parameters",
        **({"experts": experts_line(m, program.parameter_count())} if m.sparse_layers else {}),
        **({"trained": trained_line(program)} if partly else {}),
        "layout": f"{experiment.layout.name} on mesh {describe_mesh(mesh)} ({mesh.size} of "
        f"{jax.device_count()} devices: {device.device_kind})",
        **({"pipeline": pipeline_line(experiment, program.place)} if program.place.axes("layers") else {}),
        "precision": f"parameters {m.parameter_dtype}, compute {m.compute_dtype}; attention {m.attention}",
        "batch": f"{t.batch_size} sequences of {t.sequence_length} = {tokens:,} tokens a step; "
        f"{t.steps:,} steps = {short(tokens * t.steps)} tokens, {epochs:.2f} epochs",
        "FLOPs": f"{short(total)} planned ({short(flops)} a token: 6 per matmul weight, "
        f"{'4 per frozen one, ' * partly}causal attention)",
        "peak": f"{short(peak)}FLOP/s a device"
        + (" (measured, float32)" if device.platform == "cpu" else " (datasheet)")
        if peak
        else f"unknown for {device.device_kind}: no MFU",
        "optimizer": f"{experiment.optimizer.name}, learning rate {experiment.optimizer.learning_rate:g}, "
        f"{experiment.optimizer.schedule} after a warm-up of {warmup(experiment.optimizer, t.steps):,} steps"
        + (f", {fault}" if (fault := warmup_fault(experiment.optimizer, t.steps)) else ""),
        "run folder": experiment.run_dir,
    }
    return "\n".join(f"{name:<11} {text}" for name, text in lines.items())


def trained_line(program: TrainModel) -> str:
    """The header's line about what is trained, where that isn't everything."""
    adapted, trained = program.adapted, program.trained_count()
    config, parts = adapted.config, []
    if adapted.targets:
        kind = "DoRA" if config.dora else "LoRA"
        which = [name.removeprefix("blocks.") for name in adapted.targets]
        parts.append(f"{kind} of rank {config.rank} on {', '.join(which)}")
    parts += sorted(program.trained & {*program.weights})
    kept = config.base or program.config.parameter_dtype
    return (
        f"{short(trained)} parameters ({trained / program.parameter_count():.2%}): {', '.join(parts)}; the "
        f"others are frozen, in {kept}"
    )


def experts_line(model: ModelConfig, parameters: int) -> str:
    """The header's line about the mixture of experts."""
    moe = model.moe
    shared = f" and a shared one of {moe.shared_mlp}" if moe.shared_mlp else ""
    form = moe.dispatch if moe.dispatch == "dropless" else f"capacity {moe.capacity_factor:g}"
    return (
        f"{moe.top_k} of {moe.experts} of {moe.mlp}{shared} in {len(model.sparse_layers)} layers, "
        f"{moe.scores} router, {form}: "
        f"{short(active_parameters(model, parameters))} parameters active"
    )


def pipeline_line(experiment: Experiment, place: MeshPlacement) -> str:
    """The header's line about the pipeline: stages, microbatches, rounds and idle time."""
    t, config, stages = experiment.train, place.pipeline, place.size(place.axes("layers"))
    microbatches = stages * config.per_stage(
        t.batch_size // t.microbatches // place.size(place.axes("batch")), stages
    )
    return (
        f"{stages} stages of {experiment.model.layers // stages} layers, {microbatches} microbatches, "
        f"{config.rounds} rounds: "
        f"a stage idles in {config.idle(microbatches, stages):.0%} of the ticks"
    )


def closing(summary: dict[str, Any], run_dir: Path, curve: Path, scores: str) -> str:
    """The log lines after the last step: speed, losses, the last `scores`, and where the results are."""
    speed = summary["tokens_per_second"]
    return (
        f"finished {summary['step']} steps, {short(summary['tokens'])} tokens in "
        f"{clock(summary['wall_seconds'])}"
        + (f" at {short(speed)} tokens/s" if speed else "")
        + (f", MFU {summary['mfu']:.1%}" if summary["mfu"] else "")
        + f": training loss {format_loss(summary['train_loss'])}, {scores}\n"
        f"loss curve: {curve}; everything else: {run_dir}"
    )
