"""Measures vmapped runs of one program against the same runs in turn: the smallest sizes, where a step leaves
a device idle.

  python tools/bench_vmap.py                    both works, 4, 8 and 16 runs at once, on one device
  python tools/bench_vmap.py devices=2          also spread over so many devices (simulated ones of a CPU)
  python tools/bench_vmap.py runs=8 rounds=30   other numbers of runs (4,8,16) and of rounds (20)
  python tools/bench_vmap.py whole=200          also 8 whole runs of 200 steps, from the corpus to the run folder
  json=PATH                                     also writes the figures into a file

A round does one step of each variant in turn, in one process, on random tokens; the figures are medians. The
runs differ in seed, learning rate, and weight decay. Whole runs are on the standard library, in folders that
are thrown away, without a compilation cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_jax.core.errors import EXIT_USER_ERROR, UserError

WORKS = {"2 x 32, 4 x 64": (2, 32, 4, 64), "2 x 64, 4 x 128": (2, 64, 4, 128)}
"""Layers x width, sequences x tokens."""
KEYS = ("devices", "runs", "rounds", "whole", "json")


def main() -> int:
    """Runs the command line and returns its exit code."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    values = dict(argument.partition("=")[::2] for argument in arguments)
    try:
        if unknown := set(values) - set(KEYS):
            raise UserError(f"{unknown.pop()}: there is no such key; {', '.join(KEYS)}")
        devices = int(values.get("devices", 1))
        if devices > 1:  # before JAX is imported
            os.environ["XLA_FLAGS"] = (
                os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={devices}"
            )
        runs = [int(n) for n in values.get("runs", "4,8,16").split(",")]
        found: dict[str, Any] = {
            work: steps(shape, runs, devices, int(values.get("rounds", 20))) for work, shape in WORKS.items()
        }
        if "whole" in values:
            for work, shape in WORKS.items():
                found[f"{work}, whole runs"] = whole(shape, int(values["whole"]), devices)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    if "json" in values:
        Path(values["json"]).write_text(json.dumps(found, indent=2) + "\n")
    return 0


def experiment(shape: tuple[int, int, int, int], i: int, train_steps: int, folder: str = "") -> Any:
    """The experiment of run `i`; shape: layers, width, sequences, tokens."""
    from llm_jax.experiment import Experiment, resolved
    from llm_jax.layout.presets import preset
    from llm_jax.model.config import ModelConfig
    from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
    from llm_jax.train.optimizer import OptimizerConfig

    layers, embed, batch, length = shape
    vocab = 1024
    made = Experiment(
        name="vmap",
        run_dir=f"{folder}/{i}",
        model=ModelConfig(
            layers=layers, embed=embed, heads=embed // 16, vocab=vocab, attention="blocked", scan_layers=False
        ),
        layout=preset("single"),
        optimizer=OptimizerConfig(learning_rate=1e-3 * 1.2**i, weight_decay=0.1 + 0.01 * i, warmup_steps=10),
        train=TrainConfig(steps=train_steps, batch_size=batch, sequence_length=length, seed=i),
        evaluate=EvaluateConfig(every=0, final_batches=16),
        checkpoint=CheckpointConfig(every=10**6, keep_best=False),
        sample=SampleConfig(tokens=0),
    )
    return resolved(dataclasses.replace(made, tokenizer=dataclasses.replace(made.tokenizer, vocab=vocab)))


def steps(shape: tuple[int, int, int, int], runs: list[int], devices: int, rounds: int) -> dict[str, float]:
    """Variant → milliseconds a step and run."""
    import jax
    import numpy as np

    from llm_jax.run.prepare import place_of
    from llm_jax.scaling.vmapped_runs import jit_vmapped_step, placement_for, runs_spec, stack_states
    from llm_jax.train.compile import abstract_batch, jit_step
    from llm_jax.train.program_options import program_options
    from llm_jax.train.state import Frozen, TrainModel

    def variant(count: int | None, spread: int) -> Callable[[], None]:
        """A step of `count` runs at once, or of one run alone (None)."""
        made = [
            dataclasses.replace(experiment(shape, i, 10_000), mesh={"data": spread})
            for i in range(count or 1)
        ]
        e = made[0]
        objective, place = e.objective, placement_for(e, count) if count else place_of(e)
        program = TrainModel(e.model, e.optimizer, place)
        rng, batch = np.random.default_rng(0), {}
        for name, array in abstract_batch(objective, e.train, place).items():
            size = array.shape if count is None else (count, *array.shape)
            high = e.model.vocab if name in ("tokens", "targets") else 1
            values = np.ones(size, np.float32) if name == "weights" else rng.integers(0, high, size, np.int32)
            sharding = (
                array.sharding if count is None else jax.sharding.NamedSharding(place.mesh, runs_spec(place))
            )
            batch[name] = jax.device_put(values, sharding)
        states = [program.new_state(i) for i in range(count or 1)]
        if count is None:
            step, holder = jit_step(program, objective, e.optimizer, e.train.steps), [states[0]]
        else:
            own = TrainModel(
                e.model, e.optimizer, dataclasses.replace(place, manual_axes=place.mesh.axis_names)
            )
            step, holder = (
                jit_vmapped_step(own, objective, made, program_options(program)),
                [stack_states(states, place)],
            )

        def run() -> None:
            with jax.set_mesh(place.mesh):
                holder[0], metrics = step(holder[0], batch, Frozen())
                jax.block_until_ready(metrics)

        return run

    variants: dict[str, tuple[int, Callable[[], None]]] = {"in turn": (1, variant(None, 1))}
    for count in runs:
        for spread in sorted({1, devices}):
            variants[f"{count} at once" + (f" on {spread} devices" if spread > 1 else "")] = (
                count,
                variant(count, spread),
            )
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds + 2):
        for name, (count, run) in variants.items():
            start = time.perf_counter()
            run()
            if i >= 2:  # the first compiles
                seconds[name].append((time.perf_counter() - start) / count)
    figures = {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()}
    report(shape, "ms a step and run", figures)
    return figures


def whole(
    shape: tuple[int, int, int, int], train_steps: int, devices: int, count: int = 8
) -> dict[str, float]:
    """Variant → seconds a whole run, from the corpus to the run folder."""
    import jax

    from llm_jax.core.console import Console
    from llm_jax.processes.group import alone
    from llm_jax.run import run
    from llm_jax.run.prepare import NO_SERVICES, prepare_corpus
    from llm_jax.scaling.vmapped_runs import run_vmapped

    jax.config.update("jax_enable_compilation_cache", False)
    figures = {}
    with tempfile.TemporaryDirectory() as folder, alone() as group:
        prepare_corpus(
            experiment(shape, 0, train_steps), NO_SERVICES, group, lambda text: None
        )  # cached from here on, for both
        for spread in sorted({1, devices}):
            made = [
                dataclasses.replace(
                    experiment(shape, i, train_steps, f"{folder}/vmap{spread}"), mesh={"data": spread}
                )
                for i in range(count)
            ]
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                run_vmapped(made, Console(), group, time.monotonic())
            figures[f"{count} at once" + (f" on {spread} devices" if spread > 1 else "")] = (
                time.perf_counter() - start
            ) / count
        start = time.perf_counter()
        for i in range(count):
            with contextlib.redirect_stdout(io.StringIO()):
                run.prepare_and_train(
                    experiment(shape, i, train_steps, f"{folder}/turn"), Console(), group, time.monotonic()
                )
        figures = {"in turn": (time.perf_counter() - start) / count, **figures}
    report(shape, f"s a whole run of {train_steps} steps", figures)
    return figures


def report(shape: tuple[int, int, int, int], unit: str, figures: dict[str, float]) -> None:
    """Prints a line with time and speed-up for each variant."""
    layers, embed, batch, length = shape
    print(f"{layers} layers of {embed}, {batch} sequences of {length}: {unit}")
    for name, value in figures.items():
        print(f"  {name:<24} {value:8.2f}   speed-up {figures['in turn'] / value:.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
