"""Two processes with four devices each compute what one process with eight does.

Over CPUs the collectives between processes are gloo's, which add in another order: the tolerance is that of
`test_layouts`, 1e-5 relative over 20 steps.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parity.test_layouts import GROUPED, LAYOUTS, STEPS, assert_same
from tests.training import train
from tests.xla_flags import simulated

ROOT = Path(__file__).parent.parent.parent
COMPARED = ("fsdp_tensor_sequence", "pipeline")
MORE = ("fsdp", "hybrid_fsdp")
"""Their collectives between processes are among those of COMPARED: slow."""


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def tables_of(name: str) -> dict:
    """A layout of `test_layouts` as keyword arguments of Layout, its mesh fixed for 8 devices."""
    layout, mesh = LAYOUTS[name]
    return {**dataclasses.asdict(layout), "mesh": {**layout.mesh, **mesh}}


def run_processes(count: int, names: tuple[str, ...]) -> dict[str, list[dict[str, float]]]:
    """The history of each layout on `count` processes which share 8 devices."""
    layouts = {name: {k: v for k, v in tables_of(name).items() if k != "name"} for name in names}
    asked = json.dumps(
        {
            "steps": STEPS,
            "layouts": layouts,
            "model": {f.name: getattr(GROUPED, f.name) for f in simple_fields()},
        }
    )
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "XLA_FLAGS": simulated(8 // count), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.parity.worker", address, str(count), str(rank)],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdin
            process.stdin.write(asked)
            process.stdin.close()
        outputs = []
        for process in processes:
            assert process.stdout
            assert process.stderr
            errors = process.stderr.read()
            outputs.append(process.stdout.read())
            assert process.wait(timeout=60) == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    return json.loads(outputs[0].strip().splitlines()[-1])


def simple_fields() -> list[dataclasses.Field]:
    """The fields of a model's configuration that JSON can carry."""
    return [f for f in dataclasses.fields(GROUPED) if not dataclasses.is_dataclass(getattr(GROUPED, f.name))]


@pytest.mark.parametrize("names", [COMPARED, pytest.param(MORE, marks=pytest.mark.slow)], ids=",".join)
def test_two_processes_agree_with_one(names):
    histories = run_processes(2, names)
    for name in names:
        layout, mesh = LAYOUTS[name]
        history, _, _ = train(layout, mesh, steps=STEPS, model=GROUPED)
        assert len(histories[name]) == STEPS
        assert_same(histories[name], history)
