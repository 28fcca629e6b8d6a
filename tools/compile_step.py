"""Compiles an experiment's train step for GPUs that are not here and says what it allocates.

    python tools/compile_step.py experiment=bench/w3 model.max_segments=5
    python tools/compile_step.py experiment=bench/w3 model.max_segments=5 train.batch_size=224 hardware=h200 devices=8

`hardware` (h100, h200) and `devices` are this tool's; every other key=value is the experiment's, as in `llm_jax.launch`.
`text=FILE` keeps the compiled program. Needs the extra `cuda`, no GPU.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

from llm_jax.errors import EXIT_USER_ERROR, UserError
from llm_jax.experiment import Experiment, load_experiment, override, resolved
from llm_jax.layout.gpu_compile import CompiledStep
from llm_jax.layout.hardware import hardware as find_hardware
from llm_jax.layout.layout import split_axes
from llm_jax.layout.mesh import mesh_sizes
from llm_jax.model.attention_cudnn import backward_workspace_bytes
from llm_jax.train.compile import compile_absent


def report(step: CompiledStep, experiment: Experiment, hardware: str, devices: int) -> str:
    """Memory of one device by part, in GB (1e9 bytes), and the largest arrays that its loops carry."""
    memory, device = step.memory_bytes(), find_hardware(hardware).memory_bytes
    lines = [f"{name:<12}{size / 1e9:8.2f} GB" for name, size in memory.items()]
    workspace = workspace_bytes(experiment, devices)
    lines.append(f"{'workspace':<12}{workspace / 1e9:8.2f} GB at most, of cuDNN's backward kernel, when it runs")
    lines.append(f"{'device':<12}{device / 1e9:8.2f} GB: {(memory['total'] + workspace) / device:.0%} used")
    calls = step.custom_calls()
    lines.append("kernels     " + ", ".join(f"{name} x{calls.count(name)}" for name in sorted(set(calls))))
    for loop in step.loops():
        lines.append(f"loop of {loop.trips}")
        lines += [f"  {size / 1e9:8.2f} GB  {n} x {dtype}{list(shape)}" for size, n, dtype, shape in loop.largest(9)]
    return "\n".join(lines)


def workspace_bytes(experiment: Experiment, devices: int) -> int:
    """What fused attention takes beside what the compiler knows of."""
    m, t, layout = experiment.model, experiment.train, experiment.layout
    if m.attention != "cudnn":
        return 0
    sizes, split = mesh_sizes(layout, experiment.mesh, devices), {}
    for dim in ("batch", "heads"):
        split[dim] = math.prod(sizes[axis] for axis in split_axes(layout.compute.get(dim, "")))
    assert m.head_dim
    return backward_workspace_bytes(
        t.batch_size // t.microbatches // split["batch"], t.sequence_length, m.heads // split["heads"], m.head_dim, m.max_segments
    )


def main(arguments: list[str]) -> int:
    """Runs the command line."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    own = {"hardware": "h200", "devices": "1", "experiment": "", "text": ""}
    pairs = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        else:
            pairs.append((key, value))
    try:
        experiment = resolved(override(load_experiment(own["experiment"]), pairs))
        started = time.perf_counter()
        step = compile_absent(experiment, own["hardware"], int(own["devices"]))
        print(f"{experiment.name} on {own['devices']} {own['hardware']}, compiled in {time.perf_counter() - started:.1f} s; per device:")
        print(report(step, experiment, own["hardware"], int(own["devices"])))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    if own["text"]:
        Path(own["text"]).write_text(step.text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
