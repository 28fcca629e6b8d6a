"""The command `python -m llm_jax.run.save_teacher`: a teacher's likeliest tokens on a run's data, in a file
that later runs read in the teacher's stead (objective.teacher_file=FILE)."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from llm_jax.core.arguments import Pairs, argument, passed_on, read_command
from llm_jax.core.array_file import write_arrays
from llm_jax.core.command import output_file, run_command
from llm_jax.core.errors import UserError
from llm_jax.core.format import short
from llm_jax.core.log import log_to_stderr

if TYPE_CHECKING:
    from llm_jax.objective.distill import Distill
    from llm_jax.run.prepare import RunPlan


@dataclass(frozen=True, kw_only=True)
class SaveTeacherCommand:
    """Saves a teacher's likeliest tokens: python -m llm_jax.run.save_teacher out=FILE experiment=distill ...

      python -m llm_jax.run.save_teacher out=large.teacher k=64 experiment=distill from=runs/small/default teacher=runs/large/default
      python -m llm_jax.launch experiment=distill from=runs/small/default objective.teacher_file=large.teacher

    The words are those of the run that will read the file: its data, seed, sequences and steps decide which rows the
    teacher sees. For each trained token of these and of all held-out rows it has the k likeliest tokens with their
    log-probabilities, and that of all others together. One process does it.

    Exit codes: 0 done, 2 a mistake in the command line (one line names it).
    """  # noqa: E501

    out: Path = argument(shown="FILE", read=output_file)
    """The file to write."""
    k: int = argument(64, least=1)
    """How many tokens each position keeps; 8 bytes each."""
    experiment: Pairs = passed_on(lambda name: True, "experiment=NAME")
    """The experiment, as in llm_jax.launch, with all its overrides: from=FOLDER, teacher=FOLDER, layout=fsdp,
    data.source=text.jsonl, train.steps=1000, objective.temperature=2."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(save, arguments)


def save(arguments: list[str]) -> int:
    """Reads the command line, runs the teacher and writes the file. Raises UserError."""
    command = read_command(arguments, SaveTeacherCommand)
    if command is None:
        return 0

    from llm_jax.objective.distill import Distill  # these import JAX, which `run_command` sets up
    from llm_jax.run.frozen import frozen_identities, read_frozen

    plan = plan_of(list(command.experiment))
    objective, config = plan.experiment.objective, plan.experiment.model
    if not isinstance(objective, Distill) or objective.teacher_file:
        raise UserError(
            f"objective.name={objective.name}: has no teacher whose tokens could be saved. Use "
            "experiment=distill with teacher=FOLDER"
        )
    if command.k >= (config.vocab or 0):
        raise UserError(f"k={command.k}: must be below the vocabulary's {config.vocab:,} tokens")
    frozen = read_frozen(plan.experiment, plan.model, plan.frozen, log_to_stderr)
    top_tokens = jitted(plan, objective, command.k, frozen.models["teacher"])
    identity = frozen_identities(plan.experiment)["teacher"]
    train = plan.experiment.train
    about = {
        "teacher": identity["path"],
        "teacher_sha256": identity["sha256"],
        "temperature": repr(float(objective.temperature)),
        "vocab": str(config.vocab),
        "tokenizer": plan.corpus.tokenizer.fingerprint,
        "corpus": plan.corpus.fingerprint,
        "seed": str(train.seed),
        "length": str(train.sequence_length),
        "rows": str(train.batch_size * steps(plan)),
    }
    positions = write(command.out, batches(plan), top_tokens, command.k, about)
    print(
        f"{command.out}: {command.k} tokens of {positions:,} positions, "
        f"{short(command.out.stat().st_size)}B; objective.teacher_file={command.out} reads it"
    )
    return 0


def plan_of(pairs: list[tuple[str, str]]) -> RunPlan:
    """The plan of the run that will read the file."""
    import jax

    from llm_jax.processes.group import alone
    from llm_jax.run.initial_weights import experiment_from_pairs, with_dtype_for
    from llm_jax.run.prepare import NO_SERVICES, make_plan, place_of, prepare_corpus, with_vocabulary_of

    experiment = with_dtype_for(experiment_from_pairs(pairs), pairs, jax.default_backend(), log_to_stderr)
    place = place_of(experiment)
    with alone() as group:
        corpus = prepare_corpus(experiment, NO_SERVICES, group, log_to_stderr)
    return make_plan(with_vocabulary_of(experiment, corpus), place, corpus)


def steps(plan: RunPlan) -> int:
    """The batches that the run may ask for: also those in place of batches that a roll-back skips."""
    train = plan.experiment.train
    return train.steps + train.rollback.most_skipped


def batches(plan: RunPlan) -> Iterator[dict[str, np.ndarray]]:
    """The batches of the run, and all held-out ones."""
    for step in range(steps(plan)):
        yield plan.corpus.batch(step)
    yield from plan.corpus.held_out_batches(plan.experiment.train.batch_size)


def jitted(
    plan: RunPlan, objective: Distill, k: int, parameters: Any
) -> Callable[[dict[str, np.ndarray]], tuple[Any, Any]]:
    """The function from a batch to (ids [B, T, k], log-probabilities [B, T, k + 1]), arrays of NumPy."""
    import jax

    from llm_jax.objective.logprobs import hidden_states, top_tokens
    from llm_jax.objective.next_token import NextToken
    from llm_jax.train.loader import on_devices

    teacher = plan.frozen["teacher"]

    def of(parameters: Any, batch: Any) -> Any:
        model = teacher.model(parameters)
        return top_tokens(model, hidden_states(model, batch), k, objective.temperature, chunk=objective.chunk)

    compiled = teacher.jit(of)

    def run(batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
        with jax.set_mesh(plan.place.mesh):
            ids, logp = compiled(parameters, on_devices(batch, NextToken(), plan.place))
        return np.asarray(ids), np.asarray(logp)

    return run


def write(
    out: Path,
    batches: Iterator[dict[str, np.ndarray]],
    top_tokens: Callable[[dict[str, np.ndarray]], tuple[Any, Any]],
    k: int,
    about: dict[str, str],
) -> int:
    """Writes the file; returns the number of positions. A row that comes again (a later epoch's) is stored
    once."""
    from llm_jax.objective.teacher_file import KIND, row_hashes

    counts: dict[bytes, int] = {}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        ids, logp = Path(folder) / "ids", Path(folder) / "logp"
        with ids.open("wb") as ids_file, logp.open("wb") as logp_file:
            for batch in batches:
                add_batch(batch, row_hashes(batch), top_tokens, counts, ids_file, logp_file)
        positions = sum(counts.values())
        arrays: dict[str, np.ndarray] = {
            "rows": np.frombuffer(b"".join(counts), np.uint8),
            "starts": np.cumsum([0, *counts.values()], dtype=np.int64),
            "ids": np.memmap(ids, np.int32, "r", shape=(positions, k)),
            "logp": np.memmap(logp, np.float32, "r", shape=(positions, k + 1)),
        }
        write_arrays(out, arrays, {"kind": KIND, **about})
    return positions


def add_batch(
    batch: dict[str, np.ndarray],
    hashes: list[bytes],
    top_tokens: Callable[[dict[str, np.ndarray]], tuple[Any, Any]],
    counts: dict[bytes, int],
    ids_file: BinaryIO,
    logp_file: BinaryIO,
) -> None:
    """Appends the rows of a batch that are not there yet. counts: each row's hash → its trained positions."""
    trained_BT = batch["weights"] > 0
    new = [row for row, digest in enumerate(hashes) if digest not in counts and trained_BT[row].any()]
    if not new:
        return
    ids, logp = top_tokens(batch)
    for row in new:
        if hashes[row] not in counts:
            counts[hashes[row]] = int(trained_BT[row].sum())
            ids_file.write(ids[row, trained_BT[row]].astype(np.int32).tobytes())
            logp_file.write(logp[row, trained_BT[row]].astype(np.float32).tobytes())


if __name__ == "__main__":
    sys.exit(main())
