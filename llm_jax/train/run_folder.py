"""The run folder: what is in it, and whether it belongs to the experiment that is about to run in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from llm_jax.errors import UserError

if TYPE_CHECKING:
    from llm_jax.experiment import Experiment

# What may differ from the last time without changing what is trained: where it runs, what is shown and kept, and
# in which way the same numbers are computed. `train.steps` may grow, which also stretches the schedule.
MAY_DIFFER = (
    "name", "run_dir", "layout.", "mesh", "checkpoint.", "evaluate.", "sample.", "data.workers", "data.cache_dir",
    "train.steps", "train.microbatches", "train.stop_after_bad_steps", "train.log_every", "train.progress_every",
    "train.batch_sha", "model.attention", "model.max_segments", "model.scan_layers", "model.remat", "objective.chunk",
)  # fmt: skip


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of dicts as dotted keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + str(key)] = value
    return out


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What two flat configurations differ in, as "key: old → new"."""
    keys = [*old, *(k for k in new if k not in old)]
    return [f"{k}: {show(old.get(k))} → {show(new.get(k))}" for k in keys if old.get(k) != new.get(k)]


def show(value: Any) -> str:
    """A value in an error line."""
    return "unset" if value is None else str(value)


def check_same_run(run_dir: Path, yaml: str) -> list[str]:
    """What harmlessly differs from the configuration of the run that is in the folder (nothing if there is none).

    Raises UserError where anything differs that would make it another run.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        if (run_dir / "checkpoints").exists():
            raise UserError(f"run_dir={run_dir}: has checkpoints but no config.yaml, so what they are of isn't known; choose another folder")
        return []
    old, new = (flat(OmegaConf.to_container(OmegaConf.create(text))) for text in (path.read_text(), yaml))
    changed = differences(old, new)
    fatal = [c for c in changed if not c.startswith(MAY_DIFFER)]
    if fatal:
        raise UserError(
            f"run_dir={run_dir}: holds a run of another configuration ({'; '.join(fatal)}); choose another run_dir, or undo the difference"
        )
    return changed


def write_config(run_dir: Path, yaml: str) -> None:
    """Makes the folder and writes config.yaml, whole or not at all."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir={run_dir}: can't be made ({error.strerror})") from error
    part = run_dir / "config.yaml.part"
    part.write_text(yaml)
    os.replace(part, run_dir / "config.yaml")


def read_experiment(run_dir: Path) -> Experiment:
    """The experiment of a run folder."""
    from llm_jax.experiment import read_yaml

    path = run_dir / "config.yaml"
    if not path.exists():
        raise UserError(f"{run_dir}: is no run folder (it has no config.yaml)")
    return read_yaml(path)
