"""Measures the train step against the machine's own matrix-product peak.

  python tools/bench_train_step.py                       the works W1 and W2 (and W3 on a GPU): experiments/bench/
  python tools/bench_train_step.py experiment=NAME       any experiment's step, with key=value overrides
  json=PATH    also writes the figures there
  steps=N      steps that are timed (default 16)

Each work runs in a process of its own, without a compilation cache, on random tokens in packed rows of two
documents. On a CPU a product of two 2048 x 2048 float32 matrices is timed between the steps, and the fastest
is the peak; a GPU's peak is its datasheet's. MFU is model FLOPs (causal attention, nothing recomputed) of the
median step over that peak.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llm_jax.core.errors import EXIT_USER_ERROR, UserError

WORKS = {"W1": "bench/w1", "W2": "bench/w2"}
GPU_WORKS = {"W3": "bench/w3"}
DOCUMENTS = 2  # a row


def main() -> int:
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        if arguments[:1] == ["--one"]:
            print(json.dumps(measure(arguments[1], arguments[2:])))
            return 0
        values = dict(argument.partition("=")[::2] for argument in arguments)
        path, chosen = values.pop("json", ""), values.pop("experiment", "")
        works = {chosen: chosen} if chosen else WORKS | (GPU_WORKS if on_gpu() else {})
        found = {
            name: run_one(work, [f"{key}={value}" for key, value in values.items()])
            for name, work in works.items()
        }
        report(found, path)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def on_gpu() -> bool:
    """Whether the default device is a GPU, asked in another process: this one must not hold the device."""
    code = "import jax; print(jax.default_backend())"
    return (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "gpu"
    )


def run_one(work: str, overrides: list[str]) -> dict[str, Any]:
    """The figures of one work, from a fresh process."""
    started = time.time()
    command = [sys.executable, __file__, "--one", work, *overrides]
    process = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    )
    if process.returncode == EXIT_USER_ERROR:
        sys.exit(EXIT_USER_ERROR)  # it has said why
    process.check_returncode()
    figures = json.loads(process.stdout.splitlines()[-1])
    figures["first_step_seconds"] = figures.pop("first_step_at") - started
    return figures


def measure(work: str, overrides: list[str]) -> dict[str, Any]:
    """In this process: the step of an experiment, timed."""
    import jax

    from llm_jax import experiment as experiments
    from llm_jax.layout.layout import MeshPlacement
    from llm_jax.layout.mesh import make_mesh
    from llm_jax.model.accounting import train_flops_per_token
    from llm_jax.train.compile import abstract_batch, jit_step
    from llm_jax.train.peak_flops import device_peak, measure_matmul
    from llm_jax.train.state import TrainModel

    pairs = [(key, value) for key, _, value in (override.partition("=") for override in overrides)]
    steps = int(dict(pairs).get("steps", 16))
    chosen = experiments.resolved(
        experiments.override(
            experiments.load_experiment(work), [pair for pair in pairs if pair[0] != "steps"]
        )
    )
    model = chosen.model.resolved(chosen.tokenizer.vocab)
    if model.attention == "cudnn" and model.max_segments is None:
        model = dataclasses.replace(model, max_segments=DOCUMENTS)
    chosen = dataclasses.replace(chosen, model=model)
    place = MeshPlacement(chosen.layout, make_mesh(chosen.layout, chosen.mesh))
    program = TrainModel(model, chosen.optimizer, place, chosen.train.ema_decay)
    step = jit_step(program, chosen.objective, chosen.optimizer, chosen.train.steps)
    state = program.new_state(chosen.train.seed)
    abstract, values = abstract_batch(chosen.objective, chosen.train, place), random_batch(chosen)
    batch = {
        name: jax.device_put(values[name].reshape(array.shape), array.sharding)
        for name, array in abstract.items()
    }
    cpu = place.platform() == "cpu"
    seconds, peaks = [], []
    with jax.set_mesh(place.mesh):
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        first_step_at = time.time()
        for _ in range(steps):
            if cpu:
                peaks.append(measure_matmul(rounds=1))
            start = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - start)
    tokens = chosen.train.batch_size * chosen.train.sequence_length
    peak = max(peaks) if cpu else device_peak(place.mesh, model.compute_dtype)
    return {
        "parameters": program.parameter_count(),
        "flops_per_token": train_flops_per_token(model, chosen.train.sequence_length),
        "tokens_per_step": tokens,
        "tokens_per_second": tokens / sorted(seconds)[len(seconds) // 2],
        "tokens_per_second_range": [tokens / max(seconds), tokens / min(seconds)],
        "peak_flops_per_second": peak if peak is None or cpu else peak * place.mesh.size,
        "device": f"{place.mesh.size} x {place.mesh.devices.flat[0].device_kind}",
        "first_step_at": first_step_at,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loss": float(metrics["train_loss"]),
    }


def random_batch(experiment: Any) -> dict[str, Any]:
    """Random tokens in rows of `DOCUMENTS` documents of equal length."""
    import numpy as np

    B, T = experiment.train.batch_size, experiment.train.sequence_length
    tokens = np.random.default_rng(0).integers(0, experiment.model.vocab, (B, T + 1), np.int32)
    segments = np.broadcast_to(1 + np.arange(T, dtype=np.int32) * DOCUMENTS // T, (B, T))
    first = np.searchsorted(segments[0], segments[0])
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones((B, T), np.float32),
        "segments": segments,
        "positions": np.broadcast_to(np.arange(T) - first, (B, T)).astype(np.int32),
    }


def report(found: dict[str, dict[str, Any]], path: str) -> None:
    """Prints a line a work, with one peak for all (the highest that was measured), and writes the JSON."""
    peaks = [figures.pop("peak_flops_per_second") for figures in found.values()]
    peak = max(peaks) if all(peaks) else None
    print(
        f"device: {next(iter(found.values()))['device']}; matrix-product peak: "
        f"{f'{peak / 1e9:,.0f} GFLOP/s' if peak else 'unknown, so no MFU'}"
    )
    print(
        f"{'work':<6} {'parameters':>10}  {'tokens/s (median, range)':<26} {'MFU':>6}  {'first step':>10} "
        f" {'peak RSS':>9}"
    )
    for name, figures in found.items():
        speed, (slowest, fastest) = figures["tokens_per_second"], figures["tokens_per_second_range"]
        figures["mfu"] = speed * figures["flops_per_token"] / peak if peak else None
        mfu = f"{figures['mfu']:.1%}" if peak else "-"
        speeds = f"{speed:,.0f} ({slowest:,.0f} to {fastest:,.0f})"
        print(
            f"{name:<6} {figures['parameters'] / 1e6:>8.1f} M  {speeds:<26} {mfu:>6}  "
            f"{figures['first_step_seconds']:>8.1f} s"
            f"  {figures['peak_rss_bytes'] / 2**20:>5.0f} MiB"
        )
    if path:
        Path(path).write_text(json.dumps({"peak_flops_per_second": peak, **found}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
