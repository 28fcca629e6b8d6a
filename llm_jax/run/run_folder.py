"""The run folder: what is in it, and whether it belongs to the experiment that is about to run in it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yaml import YAMLError

from llm_jax.core.config_tree import differences, flat
from llm_jax.core.errors import Fault, UserError
from llm_jax.core.files import disk_problem, has_fields, read_json, write_atomic
from llm_jax.experiment import Experiment, default_experiment, with_vocabulary, yaml_values

# Keys that may differ from the last start without changing what is trained: where it runs, what is logged and
# kept, and how the same numbers are computed. `train.steps` may grow, which also stretches the schedule.
MAY_DIFFER = (
    "name", "run_dir", "layout.", "mesh", "checkpoint.", "evaluate.", "sample.", "cluster.", "data.workers", "data.cache_dir",  # noqa: E501
    "train.steps", "train.microbatches", "train.stop_after_bad_steps", "train.log_every", "train.progress_every",  # noqa: E501
    "train.batch_sha", "model.attention", "model.max_segments", "model.scan_layers", "model.remat", "objective.chunk",  # noqa: E501
)  # fmt: skip


# Keys that were added later, with a default that is the earlier behaviour: at their default they are left out
# of the hash, so that grids find the runs that they trained before.
LATER = (
    "train.start_from", "train.trainable", "adapter.", "tokenizer.control", "chat.", "data.train_on",
    "data.too_long",
    "model.norm_centred", "model.outputs", "model.parallel_blocks", "model.attention_scale",
    "model.attention_softcap", "model.embedding_scale", "model.rope_fraction", "model.rope_theta_window",
    "model.window_layers", "model.rope_scaling.attention_factor", "model.rope_scaling.truncate", "model.latent.",  # noqa: E501
)  # fmt: skip


def configuration_hash(experiment: Experiment) -> str:
    """12 hex digits of a sha256 over the resolved tree: equal for two configurations that train the same.

    Without the keys of `MAY_DIFFER`, but with `train.steps`: a longer run is another result. Whole numbers
    are the same number whether written as 1 or as 1.0.
    """
    tree = flat(dataclasses.asdict(with_vocabulary(experiment)))
    hashed = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in tree.items()}
    hashed = {k: v for k, v in hashed.items() if k == "train.steps" or not k.startswith(MAY_DIFFER)}
    if not experiment.train.rollback.spike:  # then none of its keys has a say
        hashed = {k: v for k, v in hashed.items() if not k.startswith("train.rollback.")}
    usual = flat(dataclasses.asdict(Experiment()))
    hashed = {k: v for k, v in hashed.items() if not (k.startswith(LATER) and v == usual[k])}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]


@contextlib.contextmanager
def usable(run_dir: Path) -> Iterator[None]:
    """Turns a file system error in the run folder into a Fault that names the checkpoint to resume from."""
    try:
        yield
    except Exception as error:
        if not (reason := disk_problem(error)):
            raise
        steps = [int(path.name) for path in (run_dir / "checkpoints").glob("*") if path.name.isdecimal()]
        left = (
            f"run the same command again to resume from step {max(steps)}"
            if steps
            else "run the same command again"
        )
        raise Fault(f"run_dir={run_dir}: {reason}. Once this is fixed, {left}") from error


def check_same_run(run_dir: Path, yaml: str, open_keys: tuple[str, ...] = ()) -> list[str]:
    """The harmless differences to the configuration of the run in the folder, as text (empty if there is
    none).

    Raises UserError where anything differs that would make it another run; `open_keys` aren't known yet. A
    key that there was none of when the folder was made counts as its default.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        if (run_dir / "checkpoints").exists():
            raise UserError(
                f"run_dir={run_dir}: has checkpoints but no config.yaml, so their configuration is "
                "unknown. Choose another folder"
            )
        return []
    try:
        if (before := path.read_text()) == yaml:
            return []
        old, new = yaml_values(before), yaml_values(yaml)
    except (UserError, YAMLError) as error:
        raise UserError(
            f"{path}: not a configuration ({' '.join(str(error).split())}); mend it, or choose another "
            "run_dir"
        ) from error
    default = flat(dataclasses.asdict(default_experiment(new.get("objective.name"))))
    old |= {key: default.get(key) for key in new if key not in old}
    changed = [c for c in differences(old, new) if not c.startswith(tuple(f"{key}:" for key in open_keys))]
    fatal = [c for c in changed if not c.startswith(MAY_DIFFER)]
    if fatal:
        raise UserError(
            f"run_dir={run_dir}: holds a run of another configuration ({'; '.join(fatal)}); choose "
            "another run_dir, or undo the difference"
        )
    return changed


def write_config(run_dir: Path, yaml: str) -> None:
    """Writes config.yaml atomically."""
    try:
        write_atomic(run_dir / "config.yaml", yaml)
    except OSError as error:
        raise UserError(f"run_dir={run_dir}: can't be written to ({error.strerror})") from error


def make_folder(run_dir: Path) -> None:
    """Makes the folder if it isn't there."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir={run_dir}: can't be made ({error.strerror})") from error


SUMMARY = {
    "state": str | None, "step": int | None, "reason": str | None,
    **dict.fromkeys(("goodput", "eval_loss"), int | float | None),
}  # fmt: skip
"""The fields of summary.json that decide about a run, with their types."""


def last_summary(run_dir: Path) -> dict[str, Any]:
    """The summary.json of the last start in this folder; empty if there is none.

    Raises UserError for a damaged one.
    """
    path = run_dir / "summary.json"
    summary = read_json(path)
    if not has_fields(summary, SUMMARY):
        raise UserError(f"{path}: is damaged: {', '.join(SUMMARY)} must be text or numbers; remove it")
    return summary
