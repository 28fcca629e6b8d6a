"""Checkpoints: written by Orbax in the background, whole or not at all, and read onto any layout and mesh."""

from __future__ import annotations

import dataclasses
import errno
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from llm_jax.errors import UserError
from llm_jax.train.config import CheckpointConfig
from llm_jax.train.state import TrainState


class Checkpoints:
    """The checkpoints of one run folder, in <run_dir>/checkpoints/<step>.

    Each has the train state, a small JSON of what else a resumed run needs (`info`), and its held-out loss if there is one.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig, read_only: bool = False):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells its every move
        self.ocp, self.run_dir, self.config = ocp, run_dir, config
        keep: list[Any] = [policies.LatestN(config.keep)]
        if config.also:
            keep.append(policies.CustomSteps(config.also))
        if config.keep_best:
            keep.append(policies.BestN(get_metric_fn=eval_loss_of, reverse=True, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=eval_loss_of,
            best_mode="min",
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            enable_async_checkpointing=not read_only,
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "info": ocp.JsonCheckpointHandler()}
        self.manager = ocp.CheckpointManager((run_dir / "checkpoints").absolute(), options=options, item_handlers=handlers)
        scores = [self.manager.metrics(step) for step in self.steps()]
        self.best = min((eval_loss_of(score) for score in scores if score), default=math.inf)

    def save(self, state: TrainState, step: int, info: dict[str, Any], eval_loss: float | None) -> None:
        """Starts to write a checkpoint; the arrays are copied before this returns, so the state may be donated."""
        if step in self.manager.all_steps():
            return
        if eval_loss is not None and math.isfinite(eval_loss):
            self.best = min(self.best, eval_loss)
        else:
            eval_loss = None
        args = self.ocp.args
        self.manager.save(
            step,
            args=args.Composite(state=args.StandardSave(as_dict(state)), info=args.JsonSave(info)),
            metrics=None if eval_loss is None else {"eval_loss": eval_loss},
        )

    def wants(self, eval_loss: float) -> bool:
        """Whether a state with this held-out loss is to be kept as the best."""
        return self.config.keep_best and eval_loss < self.best

    def wait(self) -> None:
        """Until what was saved is durable."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads that write."""
        self.manager.close()

    def steps(self) -> list[int]:
        """The steps that there are whole checkpoints of."""
        return sorted(self.manager.all_steps())

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and info at a step, each array where `abstract` (shapes with shardings) says.

        Raises UserError for a checkpoint of another model or optimizer.
        """
        args = self.ocp.args
        self.check_same_arrays(step, abstract)
        restored = self.manager.restore(step, args=args.Composite(state=args.StandardRestore(as_dict(abstract)), info=args.JsonRestore()))
        return TrainState(**restored["state"]), restored["info"]

    def check_same_arrays(self, step: int, abstract: TrainState) -> None:
        """Raises UserError, naming the first difference, where the checkpoint holds other arrays than `abstract`."""
        there = described(self.manager.item_metadata(step)["state"])
        if not there:
            raise FileNotFoundError(f"checkpoint {step} has no metadata")
        here = described(as_dict(abstract))
        for name in sorted({*there, *here}):
            if there.get(name) != here.get(name):
                raise UserError(
                    f"run_dir={self.run_dir}: checkpoint {step} is of another model or optimizer ({name} is {there.get(name, 'not there')}, "
                    f"and this experiment's is {here.get(name, 'not there')}); choose another run_dir"
                )

    def restore_latest(self, abstract: TrainState, say: Callable[[str], None], newest: float = math.inf) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, of those up to the step `newest`; None where there is none.

        Those after it, which can't be read, are reported and moved to <run_dir>/damaged. Where no checkpoint can be
        read the cause is more likely elsewhere: that is a UserError, and nothing is moved.
        """
        failed: dict[int, str] = {}
        for step in reversed([step for step in self.steps() if step <= newest]):
            try:
                state, info = self.restore(step, abstract)
                jax.block_until_ready(state)
            except Exception as error:  # whatever Orbax and TensorStore raise for missing or broken files
                if isinstance(error, UserError) or not is_damage(error):
                    raise
                failed[step] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                continue
            for bad, reason in failed.items():
                say(f"checkpoint {bad} can't be read and was moved to {self.set_aside(bad)} ({reason})")
            return state, info
        if failed:
            step, reason = next(iter(failed.items()))
            raise UserError(
                f"run_dir={self.run_dir}: has {len(failed)} checkpoints and none can be read; {step}: {reason}; "
                "nothing was changed: mend them, or choose another run_dir"
            )
        return None

    def set_aside(self, step: int) -> Path:
        """Moves a checkpoint to <run_dir>/damaged, so that its step can be saved again."""
        damaged = self.run_dir / "damaged" / str(step)
        damaged.parent.mkdir(exist_ok=True)
        while damaged.exists():
            damaged = damaged.with_name(damaged.name + "_")
        (self.run_dir / "checkpoints" / str(step)).rename(damaged)
        self.manager.reload()
        return damaged


def is_damage(error: Exception) -> bool:
    """Whether a failed read may be the files' fault: not the memory's, the permissions' or the disk's."""
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM, errno.EMFILE)
    ):
        return False
    return not any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "Permission denied", "Out of memory"))


def eval_loss_of(metrics: Any) -> float:
    """What the best checkpoint is chosen by."""
    return metrics["eval_loss"]


def as_dict(state: TrainState) -> dict[str, Any]:
    """The state's fields, without copying what is in them."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def described(tree: Any) -> dict[str, str]:
    """Each array of a tree of arrays, shapes or Orbax's metadata: its path → its dtype and shape."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        found[name] = f"{jax.numpy.dtype(leaf.dtype).name} {tuple(leaf.shape)}"
    return found
