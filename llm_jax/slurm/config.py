"""The resources and settings of Slurm jobs: the keys `slurm.*` of a command line, and a file with the
settings of a site.

The site's file is YAML; every key may be left out:

  slurm:                     # defaults of slurm.* keys; a command line overrides them
    account: physics
    partition: gpu
  modules: [cuda/13.0]       # loaded in the job before anything else
  environment:               # variables of the job
    NCCL_SOCKET_IFNAME: ib0
  setup:                     # shell lines before the run
    - source /projects/llm/venv/bin/activate
  container: apptainer exec --nv /projects/llm/image.sif     # put before each Python
  python: python             # the Python of the job; empty: the Python that submits it
  sbatch: [--exclusive]      # further options of sbatch
  srun: [--mpi=none]         # and of srun
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from yaml import YAMLError

from llm_jax.core.config_tree import from_tree, read_yaml_text, with_values
from llm_jax.core.errors import UserError, closest, require
from llm_jax.core.files import text_of, user_path

TIME = re.compile(
    r"(\d+)|(\d+):(\d\d)|(\d+):(\d\d):(\d\d)|(\d+)-(\d+)|(\d+)-(\d+):(\d\d)|(\d+)-(\d+):(\d\d):(\d\d)"
)
SIGNAL_SECONDS = 180
UNITS = ((60,), (60, 1), (3600, 60, 1), (86400, 3600), (86400, 3600, 60), (86400, 3600, 60, 1))
"""Seconds of the parts of each of Slurm's ways to write a time."""


@dataclass(frozen=True)
class SlurmConfig:
    """The keys `slurm.*`. The cluster's own defaults apply where a value is empty or null."""

    nodes: int = 1
    """How many nodes a run has."""
    gpus_per_node: int = 0
    """How many GPUs each node has; 0: the run is on CPUs."""
    gpu_type: str = ""
    """Slurm's name for the kind of GPU, where the cluster has several."""
    tasks_per_node: int | None = None
    """How many processes run on each node; null: one for each GPU (one on CPUs). 1 with several GPUs: each
    process uses all GPUs of its node."""
    cpus_per_task: int | None = None
    """How many CPU cores each process has."""
    memory: str = ""
    """Memory of each node, as 500G; 0: all of it."""
    time: str = ""
    """The job's time limit, after which it is requeued: 90 (minutes), 24:00:00 or 2-12:00:00 (days)."""
    partition: str = ""
    """Slurm's --partition."""
    account: str = ""
    """Slurm's --account."""
    qos: str = ""
    """Slurm's --qos, the quality of service."""
    constraint: str = ""
    """Slurm's --constraint: features that the nodes must have."""
    reservation: str = ""
    """Slurm's --reservation."""
    at_once: int = 4
    """At most so many runs of a grid run at one time."""
    max_restarts: int = 10
    """The job is given up after so many restarts in a row without a newer checkpoint."""
    backoff_seconds: int = 120
    """Seconds after a crash until the job may start again; doubled with each restart without a newer
    checkpoint, at most half an hour. 0: when Slurm itself starts a requeued job, which is after two minutes
    on most clusters."""
    signal_seconds: int | None = None
    """Seconds before the time limit at which the run receives the signal to save and stop: more than the
    slowest step plus a save plus a minute. null: 180, but at most a quarter of the limit."""
    site: str = ""
    """The file with the site's settings; empty: the file that LLM_JAX_SITE names, or
    ~/.config/llm_jax/site.yaml if it exists."""

    @property
    def tasks(self) -> int:
        """How many processes run on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def signal_early(self) -> int:
        """Seconds before the time limit at which the signal comes."""
        if self.signal_seconds is not None:
            return self.signal_seconds
        limit = seconds(self.time) if self.time else None
        return min(SIGNAL_SECONDS, limit // 4) if limit else SIGNAL_SECONDS

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        for key, least in (("nodes", 1), ("gpus_per_node", 0), ("at_once", 1), ("max_restarts", 0)):
            require(getattr(self, key) >= least, f"slurm.{key}", getattr(self, key), f"at least {least}")
        for key in ("tasks_per_node", "cpus_per_task"):
            require(
                getattr(self, key) is None or getattr(self, key) >= 1,
                f"slurm.{key}",
                getattr(self, key),
                "at least 1, or null",
            )
        # A job that starts in the second in which it was requeued is refused by the node ("Job credential
        # revoked") and is lost.
        right = self.backoff_seconds == 0 or self.backoff_seconds >= 5
        require(right, "slurm.backoff_seconds", self.backoff_seconds, "0, or at least 5")
        gpus = self.gpus_per_node
        if gpus:
            require(
                gpus % self.tasks == 0,
                "slurm.tasks_per_node",
                self.tasks,
                f"a divisor of slurm.gpus_per_node={gpus}: processes share no GPU",
            )
        require(
            not self.gpu_type or gpus > 0,
            "slurm.gpu_type",
            self.gpu_type,
            "left out where slurm.gpus_per_node=0",
        )
        require(
            not self.memory or re.fullmatch(r"\d+[KMGT]?", self.memory) is not None,
            "slurm.memory",
            self.memory,
            "as 500G, or 0 for all",
        )
        require(
            1 <= self.signal_early <= 65535,
            "slurm.signal_seconds",
            self.signal_seconds,
            "from 1 to 65535 seconds",
        )
        if self.time:
            limit = seconds(self.time)
            require(
                limit is not None and limit > 0,
                "slurm.time",
                self.time,
                "a time as Slurm writes it: 90 (minutes), 24:00:00 or 2-12:00:00",
            )
            right = self.signal_early < (limit or 0)
            require(
                right,
                "slurm.signal_seconds",
                self.signal_seconds,
                f"less than slurm.time={self.time}, which is {limit} seconds",
            )


@dataclass(frozen=True)
class SiteConfig:
    """The settings in a site's file (see the top of this module)."""

    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    modules: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    container: str = ""
    python: str = ""
    sbatch: list[str] = field(default_factory=list)
    srun: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SlurmKeys:
    """The root of the keys `slurm.*`, as a command line writes them."""

    slurm: SlurmConfig


def seconds(text: str) -> int | None:
    """The seconds of a time as Slurm writes it; None for any other text.

    >>> seconds("90"), seconds("24:00:00"), seconds("2-12"), seconds("1 day")
    (5400, 86400, 216000, None)
    """
    match = TIME.fullmatch(text)
    if not match:
        return None
    parts = [int(part) for part in match.groups() if part is not None]
    units = next(
        units
        for units in UNITS
        if len(units) == len(parts) and (len(parts) == 1 or ("-" in text) == (units[0] == 86400))
    )
    return sum(part * unit for part, unit in zip(parts, units, strict=True))


def read_settings(pairs: list[tuple[str, str]]) -> tuple[SlurmConfig, SiteConfig, str]:
    """The slurm.* settings, the site's settings and the site file's path ("" for none), from a command line's
    slurm.* keys.

    The site's file gives the defaults of slurm.* keys. Raises UserError for unknown keys, with the nearest
    name, and for wrong values.
    """
    known = [f"slurm.{f.name}" for f in dataclasses.fields(SlurmConfig)]
    for key, value in pairs:
        if key not in known:
            raise UserError(
                f"{key}={value}: there is no key {key!r}; did you mean '{closest(key, known) or known[0]}'?"
            )
    path = site_path(dict(pairs).get("slurm.site", ""))
    site = read_site(path) if path else SiteConfig()
    settings = with_values(SlurmKeys(site.slurm), pairs).slurm
    settings.check()
    return settings, site, str(path or "")


def site_path(given: str) -> Path | None:
    """The site's file: `given` or LLM_JAX_SITE, which must exist; else ~/.config/llm_jax/site.yaml; None if
    that doesn't exist."""
    for key, path in (("slurm.site", given), ("LLM_JAX_SITE", os.environ.get("LLM_JAX_SITE", ""))):
        if path:
            if not user_path(path).is_file():
                raise UserError(f"{key}={path}: there is no such file")
            return user_path(path).absolute()
    config = user_path(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    default = config / "llm_jax" / "site.yaml"
    return default if default.is_file() else None


def read_site(path: Path) -> SiteConfig:
    """A site's file. Raises UserError, naming file and key, where it isn't one."""
    try:
        tree = read_yaml_text(text_of(path.read_bytes(), str(path)))
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"{path}: not a site's settings ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a site's settings: must be a table of keys and values")
    try:
        return from_tree(SiteConfig(), tree)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
