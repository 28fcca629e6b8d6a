"""Checkpoints: written by Orbax in the background, whole or not at all, and read onto any layout and mesh."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from llm_jax.train.config import CheckpointConfig
from llm_jax.train.state import TrainState


class Checkpoints:
    """The checkpoints of one run folder, in <run_dir>/checkpoints/<step>.

    Each has the train state and a small JSON of what else a resumed run needs (`info`).
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig, read_only: bool = False):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells its every move
        self.ocp, self.run_dir = ocp, run_dir
        keep: list[Any] = [policies.LatestN(config.keep)]
        if config.keep_best:
            best = policies.BestN(get_metric_fn=lambda m: m["eval_loss"], reverse=True, n=1, keep_checkpoints_without_metrics=False)
            keep.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            enable_async_checkpointing=not read_only,
        )
        self.manager = ocp.CheckpointManager((run_dir / "checkpoints").absolute(), options=options, item_names=("state", "info"))

    def save(self, state: TrainState, step: int, info: dict[str, Any], eval_loss: float | None) -> None:
        """Starts to write a checkpoint; the arrays are copied before this returns, so the state may be donated."""
        if step in self.manager.all_steps():
            return
        args = self.ocp.args
        self.manager.save(
            step,
            args=args.Composite(state=args.StandardSave(as_dict(state)), info=args.JsonSave(info)),
            metrics=None if eval_loss is None else {"eval_loss": eval_loss},
        )

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
        """The state and info at a step, each array where `abstract` (shapes with shardings) says."""
        args = self.ocp.args
        restored = self.manager.restore(step, args=args.Composite(state=args.StandardRestore(as_dict(abstract)), info=args.JsonRestore()))
        return TrainState(**restored["state"]), restored["info"]

    def restore_latest(self, abstract: TrainState, say: Callable[[str], None]) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read; None where there is none.

        One that can't be read is reported and moved to <run_dir>/damaged, and the one before it is tried.
        """
        for step in reversed(self.steps()):
            try:
                state, info = self.restore(step, abstract)
                jax.block_until_ready(state.step)
                return state, info
            except Exception as error:  # whatever Orbax and TensorStore raise for missing or broken files
                damaged = self.run_dir / "damaged" / str(step)
                damaged.parent.mkdir(exist_ok=True)
                while damaged.exists():
                    damaged = damaged.with_name(damaged.name + "_")
                (self.run_dir / "checkpoints" / str(step)).rename(damaged)
                self.manager.reload()
                reason = str(error).strip().split("\n")[0][:300]
                say(f"checkpoint {step} can't be read and was moved to {damaged} ({type(error).__name__}: {reason})")
        return None


def as_dict(state: TrainState) -> dict[str, Any]:
    """The state's fields, without copying what is in them."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
