"""Checkpoints: written by Orbax in the background, atomically, with checksums, and read onto any layout, mesh
and number of processes.

A checkpoint is written as checkpoints/saving.<step>, by all processes. When all have written their part, the
first one takes the checksums of all files, waits until they are on the disk, and renames the folder to
checkpoints/<step>: from then on there is this checkpoint, and only then are older ones removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from llm_jax.core import checksums
from llm_jax.core.errors import UserError
from llm_jax.core.files import sync_folder
from llm_jax.objective.protocol import Score
from llm_jax.processes.collective import broadcast_from_first, first_error, run_on_all
from llm_jax.processes.group import Group
from llm_jax.train.config import CheckpointConfig
from llm_jax.train.state import TrainState

LOSS = Score()
SAVING, REMOVING = "saving.", "removing."
"""Prefixes of folders that are not a checkpoint yet, or not any more."""


class Checkpoints:
    """The checkpoints of one run folder, in <run_dir>/checkpoints/<step>.

    All processes of the run call the same methods in the same order.

    Each has the train state, and a small JSON of what else a resumed run needs (`info`), its held-out loss if
    there is one among it.
    """

    def __init__(
        self,
        run_dir: Path,
        config: CheckpointConfig,
        group: Group,
        read_only: bool = False,
        reach: int = 0,
        score: Score = LOSS,
    ):
        """reach: a checkpoint of so many steps before the newest is always kept, if there ever was one, and
        all those after it. score: which evaluation score makes a checkpoint the best.
        """
        import orbax.checkpoint as ocp

        for library in (
            "absl",
            "asyncio",
        ):  # Orbax logs every call, and errors as pages of tracebacks beside the exception
            logging.getLogger(library).setLevel(logging.CRITICAL)
        drop_late_writes()
        self.ocp, self.run_dir, self.config, self.group, self.reach, self.score = (
            ocp,
            run_dir,
            config,
            group,
            reach,
            score,
        )
        self.folder = (run_dir / "checkpoints").absolute()
        found = broadcast_from_first(group, "checkpoints", lambda: list(self.look(read_only).items()))
        self.scores: dict[int, float | None] = dict(found)
        """The steps of all whole checkpoints, each with its evaluation score, if it has one."""
        self.begun = set(self.scores)
        self.best = self.best_loss()
        items = {"state": ocp.StandardCheckpointHandler(), "info": ocp.JsonCheckpointHandler()}
        self.checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**items))
        self.thread = ThreadPoolExecutor(1, "checkpoints")
        self.writing: tuple[int, Future[None]] | None = None

    def look(self, read_only: bool) -> dict[int, float | None]:
        """The steps and scores of all checkpoints; removes what an interrupted save or removal
        left behind.
        """
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.iterdir():
                if path.name.startswith((SAVING, REMOVING)):
                    shutil.rmtree(path, ignore_errors=True)
        steps = sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())
        return {step: read_score(self.folder / str(step), self.score.name) for step in steps}

    def save(self, state: TrainState, step: int, info: dict[str, Any], score: float | None) -> None:
        """Starts to write a checkpoint; the arrays are copied before this returns, so the state may be
        donated.

        score: the evaluation score of this state, if it was evaluated.
        """
        if step in self.begun:
            return
        self.wait()
        score = score if score is not None and math.isfinite(score) else None
        self.best = min(self.best, self.as_loss(score))
        self.begun.add(step)
        args = self.ocp.args
        items = args.Composite(
            state=args.StandardSave(as_dict(state)), info=args.JsonSave({**info, self.score.name: score})
        )
        with self.failing(step):
            self.checkpointer.save(self.folder / f"{SAVING}{step}", args=items)
        self.writing = step, self.thread.submit(self.finish, step, score)

    def finish(self, step: int, score: float | None) -> None:
        """Completes a checkpoint in the background, once all processes have written their part, and removes
        those that it replaces.
        """
        self.checkpointer.wait_until_finished()
        if self.group.task.rank == 0:
            part = self.folder / f"{SAVING}{step}"
            checksums.write(part)
            part.rename(self.folder / str(step))
            sync_folder(self.folder)
        self.scores[step] = score
        for old in self.replaced():
            del self.scores[old]
            if self.group.task.rank == 0:
                self.remove(old)

    def remove(self, step: int) -> None:
        """Removes a checkpoint: renamed first, so that none is ever half removed."""
        rest = self.folder / f"{REMOVING}{step}"
        (self.folder / str(step)).rename(rest)
        shutil.rmtree(rest)

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, so that these can be saved again.

        There are none of them on the disk when this returns.
        """

        def remove() -> None:
            for later in later_ones:
                self.remove(later)
            sync_folder(self.folder)

        later_ones = [later for later in reversed(self.steps()) if later > step]
        broadcast_from_first(self.group, "remove", remove)
        for later in later_ones:
            del self.scores[later]
            self.begun.discard(later)
        self.best = self.best_loss()

    def as_loss(self, score: float | None) -> float:
        """A score as a number that is lower where the score is better; infinite for None."""
        return math.inf if score is None else score if self.score.lower_is_better else -score

    def best_loss(self) -> float:
        """The best score of all checkpoints, `as_loss`; infinite where none has one."""
        return min(map(self.as_loss, self.scores.values()), default=math.inf)

    def replaced(self) -> list[int]:
        """The steps whose checkpoints need not be kept any longer."""
        steps = self.steps()
        oldest = max((step for step in steps if step <= steps[-1] - self.reach), default=0)
        kept = {*steps[-self.config.keep :], *self.config.also, *(step for step in steps if step >= oldest)}
        scored = [(self.as_loss(score), -step) for step, score in self.scores.items() if score is not None]
        if self.config.keep_best and scored:
            kept.add(-min(scored)[1])
        return [step for step in steps if step not in kept]

    def is_best(self, score: float) -> bool:
        """Whether a state with this score is better than all checkpoints, and so to be kept."""
        return self.config.keep_best and self.as_loss(score) < self.best

    def check(self) -> None:
        """Raises the error of a save in the background that has failed. Costs nothing."""
        if self.writing and self.writing[1].done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is durable. Raises its error where it failed."""
        if self.writing:
            (step, future), self.writing = self.writing, None
            with self.failing(step):
                future.result()

    @contextlib.contextmanager
    def failing(self, step: int) -> Iterator[None]:
        """Removes the files of a checkpoint whose saving fails: the disk may be full."""
        try:
            yield
        except Exception:
            if self.group.task.rank == 0:
                for path in self.folder.glob(f"{SAVING}{step}*"):
                    shutil.rmtree(path, ignore_errors=True)
            raise

    def close(self) -> None:
        """Waits, and ends the threads that write."""
        try:
            self.wait()
        finally:
            self.thread.shutdown()
            self.checkpointer.close()

    def room(self, abstract: TrainState) -> int:
        """Bytes that future checkpoints need at the same time, beside the existing ones."""
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
        reached = -(-self.reach // self.config.every) + 1
        at_once = (
            max(self.config.keep, reached) + len(self.config.also) + self.config.keep_best + 1
        )  # one is being written
        return size * max(1, at_once - len(self.scores))

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(self.scores)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and info at a step, each array placed as in `abstract` (shapes with shardings).

        Raises UserError for a checkpoint of another model or optimizer.
        """
        args, folder = self.ocp.args, self.folder / str(step)
        checksums.check(folder, self.group.task.rank, self.group.task.size)
        self.check_same_arrays(step, abstract)
        items = args.Composite(state=args.StandardRestore(as_dict(abstract)), info=args.JsonRestore())
        # By the handler: the checkpointer would then wait for processes that may have failed.
        restored = self.checkpointer.handler.restore(
            self.ocp.path.Path(folder) if hasattr(self.ocp.path, "Path") else folder, args=items
        )
        state = TrainState(**restored["state"])
        jax.block_until_ready(state)
        return state, restored["info"]

    def check_same_arrays(self, step: int, abstract: TrainState) -> None:
        """Raises UserError, naming the first difference, where the checkpoint holds other arrays than
        `abstract`.
        """
        there = described(self.checkpointer.metadata(self.folder / str(step)).item_metadata["state"])
        if not there:
            raise FileNotFoundError(f"checkpoint {step} has no metadata")
        here = described(as_dict(abstract))
        for name in sorted({*there, *here}):
            if there.get(name) != here.get(name):
                raise UserError(
                    f"run_dir={self.run_dir}: checkpoint {step} is of another model or optimizer ({name} "
                    f"is {there.get(name, 'not there')}, "
                    f"and this experiment's is {here.get(name, 'not there')}); choose another run_dir"
                )

    def restore_latest(
        self, abstract: TrainState, log: Callable[[str], None], newest: float = math.inf
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that all processes can read, of those up to the step `newest`; None where
        there is none.

        Those after it, which can't be read, are reported and moved to <run_dir>/damaged. Where no checkpoint
        can be read the cause is more likely elsewhere: that is a UserError, and nothing is moved.
        """
        failed: dict[int, str] = {}
        for step in reversed([step for step in self.steps() if step <= newest]):
            found, problem = run_on_all(self.group, "restore", lambda: self.try_restore(step, abstract))  # noqa: B023
            problem = first_error(self.group, "restored", problem)
            if problem:
                failed[step] = problem
                continue
            for bad, reason in failed.items():
                log(f"checkpoint {bad} can't be read and was moved to {self.set_aside(bad)} ({reason})")
            return found
        if failed:
            step, reason = next(iter(failed.items()))
            raise UserError(
                f"run_dir={self.run_dir}: has {len(failed)} checkpoints and none can be read; {step}: "
                f"{reason}; "
                "nothing was changed: mend them, or choose another run_dir"
            )
        return None

    def try_restore(
        self, step: int, abstract: TrainState
    ) -> tuple[tuple[TrainState, dict[str, Any]] | None, str]:
        """(state and info, "") as `restore` reads them; (None, the reason) for a damaged checkpoint."""
        try:
            return self.restore(step, abstract), ""
        except checksums.Damaged as error:
            return None, str(error)
        except Exception as error:  # Orbax and TensorStore raise various types for missing or broken files
            if isinstance(error, UserError) or not is_damage(error):
                raise
            return None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    def set_aside(self, step: int) -> str:
        """Moves a checkpoint to <run_dir>/damaged, so that its step can be saved again."""

        def move() -> str:
            damaged = self.run_dir / "damaged" / str(step)
            damaged.parent.mkdir(exist_ok=True)
            while damaged.exists():
                damaged = damaged.with_name(damaged.name + "_")
            (self.folder / str(step)).rename(damaged)
            return str(damaged)

        where = broadcast_from_first(self.group, "set aside", move)
        del self.scores[step]
        self.begun.discard(step)
        return where


@functools.cache
def drop_late_writes() -> None:
    """Keeps Python from printing a traceback for each write of a failed save that ends after the first one
    that failed. Stays for the rest of the process.

    Orbax raises the first error, which is the one to be told, and closes the event loop; TensorStore still
    reports the others to that loop, from its own threads, where nobody can catch what this raises.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook


def is_damage(error: Exception) -> bool:
    """True if the error indicates a corrupt checkpoint, rather than lack of memory, permissions or I/O."""
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError)
        and error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM, errno.EMFILE)
    ):
        return False
    return not any(
        word in str(error)
        for word in ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "Permission denied", "Out of memory")
    )


def read_score(folder: Path, name: str) -> float | None:
    """The evaluation score of a checkpoint; None where it has none, or can't be read."""
    try:
        score = json.loads((folder / "info" / "metadata").read_text())[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return score if isinstance(score, float) else None


def as_dict(state: TrainState) -> dict[str, Any]:
    """The state's fields as a dict, without copying arrays."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def described(tree: Any) -> dict[str, str]:
    """Each array of a tree of arrays, shapes or Orbax's metadata: its path → its dtype and shape."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = ".".join(
            str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
        )
        found[name] = f"{jax.numpy.dtype(leaf.dtype).name} {tuple(leaf.shape)}"
    return found
