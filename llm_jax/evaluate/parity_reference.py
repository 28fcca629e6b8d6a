"""The other side of `llm_jax.evaluate.parity`: lm-evaluation-harness scores a folder with its backend `hf`.

    python parity_reference.py < asked.json

It is a program of its own, run by a Python that has lm-evaluation-harness, transformers and torch, and needs
nothing of this package. asked.json: {"folder", "out", "batch_size", "dtype", "limit", "shots", "files": task
files, "requests": {task: {"kind", "arguments": [[...], ...]}}}. It writes to `out` the kind, arguments and
responses of every request, and the seconds that the model took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DISABLE_MULTIPROC": "1",
}


def main() -> int:
    """Reads what is asked from stdin and writes the responses."""
    asked = json.load(sys.stdin)
    os.environ.update(OFFLINE)
    import lm_eval  # an optional extra
    from lm_eval.models.huggingface import HFLM  # an optional extra; torch too

    model = HFLM(
        pretrained=asked["folder"], dtype=asked["dtype"], device="cpu", batch_size=asked["batch_size"]
    )
    tasks = {
        name: scored(model, given["kind"], given["arguments"]) for name, given in asked["requests"].items()
    }
    for file in asked["files"]:
        tasks |= of_file(model, Path(file), asked["limit"], asked["shots"])
    found = {
        "lm_eval_version": lm_eval.__version__,
        "max_length": model.max_length,
        "prefix": model.prefix_token_id,
        "tasks": tasks,
    }
    Path(asked["out"]).write_text(json.dumps(found))
    return 0


def scored(model: Any, kind: str, arguments: list[list[Any]]) -> dict[str, Any]:
    """The responses of the model to requests."""
    from lm_eval.api.instance import Instance  # an optional extra

    instances = [
        Instance(request_type=kind, doc={}, arguments=tuple(given), idx=i)
        for i, given in enumerate(arguments)
    ]
    begun = time.perf_counter()
    responses = getattr(model, kind)(instances, disable_tqdm=True)
    seconds = time.perf_counter() - begun
    return {"kind": kind, "arguments": arguments, "responses": responses, "seconds": seconds}


def of_file(model: Any, file: Path, limit: int | None, shots: int | None) -> dict[str, Any]:
    """The requests of a task file (YAML), as the harness makes them, with the responses."""
    from lm_eval.tasks import TaskManager  # an optional extra

    os.chdir(file.parent)  # data_files are relative to the working directory
    manager = TaskManager(include_path=str(file.parent), include_defaults=False)
    found = {}
    for name, task in manager.load([task_name(file)])["tasks"].items():
        if shots is not None:
            task.set_config(key="num_fewshot", value=shots)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        kind = task.instances[0].request_type
        found[name] = scored(model, kind, [list(instance.args) for instance in task.instances])
    return found


def task_name(file: Path) -> str:
    """The name in a task file; it may have tags that a plain YAML reader doesn't know."""
    line = next(line for line in file.read_text().splitlines() if line.startswith("task:"))
    return line.removeprefix("task:").split("#")[0].strip().strip("\"'")


if __name__ == "__main__":
    sys.exit(main())
