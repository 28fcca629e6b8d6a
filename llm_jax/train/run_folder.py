"""The run folder: what is in it, and whether it belongs to the experiment that is about to run in it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from llm_jax.errors import Fault, UserError
from llm_jax.train import metrics

if TYPE_CHECKING:
    from llm_jax.experiment import Experiment

# What may differ from the last time without changing what is trained: where it runs, what is shown and kept, and
# in which way the same numbers are computed. `train.steps` may grow, which also stretches the schedule.
MAY_DIFFER = (
    "name", "run_dir", "layout.", "mesh", "checkpoint.", "evaluate.", "sample.", "cluster.", "data.workers", "data.cache_dir",
    "train.steps", "train.microbatches", "train.stop_after_bad_steps", "train.log_every", "train.progress_every",
    "train.batch_sha", "model.attention", "model.max_segments", "model.scan_layers", "model.remat", "objective.chunk",
)  # fmt: skip


# Keys that there weren't always, and whose default is what was before: at that they have no say, so that grids find their old runs again.
LATER = (
    "train.start_from", "model.norm_centred", "model.parallel_blocks", "model.attention_scale", "model.attention_softcap", "model.embedding_scale",
    "model.rope_fraction", "model.rope_theta_window", "model.window_layers", "model.rope_scaling.attention_factor", "model.rope_scaling.truncate",
    "model.latent.",
)  # fmt: skip

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)


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


def configuration_hash(experiment: Experiment) -> str:
    """What tells two configurations apart that train differently: 12 hex digits of a sha256 over the resolved tree.

    Without the keys of `MAY_DIFFER`, but with `train.steps`: a longer run is another result. Whole numbers are the same number
    whether written as 1 or as 1.0.
    """
    from llm_jax.experiment import Experiment, with_vocabulary

    tree = flat(dataclasses.asdict(with_vocabulary(experiment)))
    told = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in tree.items()}
    told = {k: v for k, v in told.items() if k == "train.steps" or not k.startswith(MAY_DIFFER)}
    if not experiment.train.rollback.spike:  # then none of its keys has a say
        told = {k: v for k, v in told.items() if not k.startswith("train.rollback.")}
    defaults = flat(dataclasses.asdict(Experiment()))
    told = {k: v for k, v in told.items() if not (k.startswith(LATER) and v == defaults[k])}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def check_writable(run_dir: Path, key: str = "run_dir") -> None:
    """Raises UserError, naming the key, where a folder could not be written to, before it has cost anything. Makes nothing."""
    there = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{key}={run_dir}: {there} is a file; choose a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{key}={run_dir}: {there} can't be written to; choose another folder")


@contextlib.contextmanager
def usable(run_dir: Path) -> Iterator[None]:
    """Raises Fault, saying what there is to go on from, where the file system fails what is written to the run folder or read there."""
    try:
        yield
    except Exception as error:
        if not (reason := disk_problem(error)):
            raise
        steps = [int(path.name) for path in (run_dir / "checkpoints").glob("*") if path.name.isdigit()]
        left = f"the same command goes on from the checkpoint of step {max(steps)}" if steps else "the same command starts again"
        raise Fault(f"run_dir={run_dir}: {reason}; once that is mended, {left}") from error


def disk_problem(error: BaseException | None) -> str:
    """What the file system said, if it is why something could not be written or read; empty if it isn't."""
    while error is not None:
        for code in DISK:
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):  # TensorStore's errors have the words
                name = getattr(error, "filename", None)
                return os.strerror(code) + (f" ({name})" if name else "")
        error = error.__cause__ or error.__context__
    return ""


BUSY = "another process is running in this folder"


class Busy(UserError):
    """Another process holds the folder."""


@contextlib.contextmanager
def locked(run_dir: Path, say: Callable[[str], None], shared: bool = False) -> Iterator[None]:
    """Holds a run folder, which exists, for this process alone; the system lets go of it however the process ends.

    `shared`: beside others that share it too.
    Raises Busy if another process of this machine (of the cluster, where its file system has locks) holds it.
    """
    folder = os.open(run_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"run_dir={run_dir}: {BUSY}; wait for it, or choose another") from None
        except OSError as error:
            say(f"run_dir={run_dir}: its file system has no locks ({error.strerror}); make sure that no other process uses the folder")
        yield
    finally:
        os.close(folder)


def check_same_run(run_dir: Path, yaml: str, open_keys: tuple[str, ...] = ()) -> list[str]:
    """What harmlessly differs from the configuration of the run that is in the folder (nothing if there is none).

    Raises UserError where anything differs that would make it another run; `open_keys` aren't known yet. A key that there was none of
    when the folder was made counts as its default.
    """
    from llm_jax.experiment import defaults

    path = run_dir / "config.yaml"
    if not path.exists():
        if (run_dir / "checkpoints").exists():
            raise UserError(f"run_dir={run_dir}: has checkpoints but no config.yaml, so what they are of isn't known; choose another folder")
        return []
    try:
        if (before := path.read_text()) == yaml:
            return []
        trees = [OmegaConf.create(text) for text in (before, yaml)]
    except Exception as error:
        raise UserError(f"{path}: not a configuration ({' '.join(str(error).split())}); mend it, or choose another run_dir") from error
    if not all(isinstance(tree, DictConfig) for tree in trees):
        raise UserError(f"{path}: not a configuration; mend it, or choose another run_dir")
    old, new, default = (flat(OmegaConf.to_container(tree)) for tree in (*trees, defaults()))
    old |= {key: default.get(key) for key in new if key not in old}
    changed = [c for c in differences(old, new) if not c.startswith(tuple(f"{key}:" for key in open_keys))]
    fatal = [c for c in changed if not c.startswith(MAY_DIFFER)]
    if fatal:
        raise UserError(
            f"run_dir={run_dir}: holds a run of another configuration ({'; '.join(fatal)}); choose another run_dir, or undo the difference"
        )
    return changed


def write_config(run_dir: Path, yaml: str) -> None:
    """Writes config.yaml, whole or not at all."""
    part = run_dir / "config.yaml.part"
    try:
        part.write_text(yaml)
        os.replace(part, run_dir / "config.yaml")
    except OSError as error:
        raise UserError(f"run_dir={run_dir}: can't be written to ({error.strerror})") from error


def make_folder(run_dir: Path) -> None:
    """Makes the folder if it isn't there."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir={run_dir}: can't be made ({error.strerror})") from error


def last_summary(run_dir: Path) -> dict[str, Any]:
    """The summary.json of the last start in this folder; empty if there is none."""
    return metrics.read_json(run_dir / "summary.json")


def read_experiment(run_dir: Path) -> Experiment:
    """The experiment of a run folder."""
    from llm_jax.experiment import read_yaml

    path = run_dir / "config.yaml"
    if not path.exists():
        raise UserError(f"{run_dir}: is no run folder (it has no config.yaml)")
    return read_yaml(path)
