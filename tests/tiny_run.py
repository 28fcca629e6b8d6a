"""The smallest run that has all the parts of a real one, for tests of what a run promises: a second or two
each.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax.core.files import read_json_lines
from llm_jax.launch import main
from tests.data.conftest import documents, write_jsonl
from tests.xla_flags import simulated

ROOT = Path(__file__).parent.parent

EXPERIMENT = '''"""A run of a few seconds."""

from llm_jax.data import DataConfig, TokenizerConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.train.config import CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        model=ModelConfig(layers=2, embed=32, heads=4, mlp=64),
        layout=preset("single"),
        data=DataConfig(source={source!r}, workers=1),
        tokenizer=TokenizerConfig(vocab=320),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2),
        train=TrainConfig(steps=8, batch_size=8, sequence_length=32),
        evaluate=EvaluateConfig(every=4, batches=1, final_batches=1),
        checkpoint=CheckpointConfig(every=2),
        sample=SampleConfig(tokens=0),
    )
'''


def write_experiment(folder: Path, name: str = "tiny", more: str = "", **replaced: str) -> Path:
    """An experiment file; `replaced` gives expressions of Experiment's fields, put in by
    dataclasses.replace.
    """
    source = folder / "small.jsonl"
    if not source.exists():
        write_jsonl(source, documents(400))
    text = EXPERIMENT.replace("{source!r}", repr(str(source)))
    if replaced or more:
        text = (
            text.replace("def experiment()", "def base()")
            + f"\n\n{more}\n\n\ndef experiment():\n    import dataclasses\n\n    base_ = base()\n"
        )
        text += (
            f"    return dataclasses.replace(base_, {', '.join(f'{k}={v}' for k, v in replaced.items())})\n"
        )
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


def launch(*arguments: object) -> int:
    """The launcher in this process; its exit code."""
    return main([str(a) for a in arguments])


def launch_process(*arguments: object, patch: str = "", devices: int = 1) -> subprocess.CompletedProcess[str]:
    """The launcher in a process of its own, which may die; `patch` is Python that runs in it first."""
    program = (
        f"import os, signal, sys\n{patch}\nfrom llm_jax.launch import main\nsys.exit(main(sys.argv[1:]))"
    )
    environment = {**os.environ, "XLA_FLAGS": simulated(devices)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def launch_processes(
    count: int,
    *arguments: object,
    patches: dict[int, str] | None = None,
    devices: int = 2,
    seconds: float = 240,
) -> list[subprocess.CompletedProcess[str]]:
    """The launcher in several processes of one run, on this machine, by rank; `patches`: Python that runs in
    some of them first.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    started, ended = [], []
    for rank in range(count):
        program = (
            f"import os, signal, sys\n{(patches or {}).get(rank, '')}\nfrom llm_jax.launch import "
            "main\nsys.exit(main(sys.argv[1:]))"
        )
        environment = {
            **os.environ, "XLA_FLAGS": simulated(devices), "LLM_JAX_COORDINATOR": coordinator,
            "LLM_JAX_RANK": str(rank), "LLM_JAX_SIZE": str(count), "LLM_JAX_LOCAL_RANK": str(rank), "LLM_JAX_LOCAL_SIZE": str(count),
        }  # fmt: skip
        command = [sys.executable, "-c", program, *map(str, arguments)]
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        with ThreadPoolExecutor(count) as pool:  # nobody waits for a full pipe
            outputs = list(pool.map(lambda process: process.communicate(timeout=seconds), started))
        ended = [
            subprocess.CompletedProcess(p.args, p.returncode, *output)
            for p, output in zip(started, outputs, strict=True)
        ]
    finally:
        for process in started:
            process.kill()
    return ended


def losses(run_dir: Path) -> dict[int, float]:
    """step → train_loss; fails where a step was done twice with different values."""
    found: dict[int, float] = {}
    for line in read_json_lines(run_dir / "metrics.jsonl"):
        if "train_loss" in line:
            assert found.setdefault(line["step"], line["train_loss"]) == line["train_loss"], (
                f"step {line['step']}"
            )
    return found


def shas(run_dir: Path) -> dict[int, str]:
    """step → batch_sha."""
    return {
        line["step"]: line["batch_sha"]
        for line in read_json_lines(run_dir / "metrics.jsonl")
        if "batch_sha" in line
    }


def summary(run_dir: Path) -> dict[str, Any]:
    """summary.json, by a parser that takes no NaN."""
    return json.loads((run_dir / "summary.json").read_text(), parse_constant=lambda name: 1 / 0)


def checkpoint(run_dir: Path, step: int) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, read by Orbax alone: path → values."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore((run_dir / "checkpoints" / str(step) / "state").absolute())
    return {
        jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def steps_saved(run_dir: Path) -> list[int]:
    """The steps that there are whole checkpoints of."""
    return sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit())
