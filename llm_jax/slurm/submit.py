"""Hands a run to Slurm: writes a script into the run folder, from job.sh.jinja, and submits it with sbatch."""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import sys
import time
from pathlib import Path

from llm_jax.core.errors import UserError, check_choice
from llm_jax.core.files import check_writable, write_atomic, write_json
from llm_jax.core.templates import render
from llm_jax.experiment import Experiment, to_yaml
from llm_jax.layout.mesh import mesh_sizes
from llm_jax.run import run_folder
from llm_jax.slurm import job
from llm_jax.slurm.config import SiteConfig, SlurmConfig, read_settings


@dataclasses.dataclass(frozen=True)
class Submission:
    """How jobs are submitted: what a command line and the site's file say."""

    settings: SlurmConfig
    site: SiteConfig
    site_file: str
    command: list[str]
    """The command line as it was, without the flags."""

    @property
    def python(self) -> str:
        """The Python of the job, in its container."""
        return " ".join(filter(None, (self.site.container, shlex.quote(self.site.python or sys.executable))))

    def command_with_site(self) -> list[str]:
        """The command line as it means the same in a job, whose environment may be another."""
        given = any(argument.startswith("slurm.site=") for argument in self.command)
        return self.command + [f"slurm.site={self.site_file}"] * bool(self.site_file and not given)

    def options(self, name: str, log: Path) -> list[str]:
        """Those of sbatch that are the same for a run and for each run of an array."""
        s = self.settings
        made = [f"--job-name={name.replace('/', '-')}", f"--nodes={s.nodes}", f"--ntasks-per-node={s.tasks}"]
        if s.gpus_per_node:
            made.append(f"--gpus-per-node={s.gpu_type + ':' if s.gpu_type else ''}{s.gpus_per_node}")
        if s.cpus_per_task:
            made.append(f"--cpus-per-task={s.cpus_per_task}")
        made += [f"--mem={s.memory}"] * bool(s.memory)
        made += [f"--{key}={getattr(s, key)}" for key in ("constraint", "reservation") if getattr(s, key)]
        return [*map(quoted, made), *self.common_options(log), quoted(f"--signal=USR1@{s.signal_early}"), *map(quoted, self.site.sbatch)]

    def light_options(self, name: str, log: Path) -> list[str]:
        """Those of a job that trains nothing."""
        return [quoted(f"--job-name={name.replace('/', '-')}"), "--ntasks=1", *self.common_options(log)]

    def common_options(self, log: Path) -> list[str]:
        """Those of all jobs. A log goes on after a requeue; a path with % in it would mean something else to Slurm."""
        given = [f"--{key}={getattr(self.settings, key)}" for key in ("time", "partition", "account", "qos") if getattr(self.settings, key)]
        return [quoted(option) for option in (*given, "--requeue", "--open-mode=append", f"--output={str(log).replace('%', '%%')}")]

    def srun(self) -> str:
        """Options of srun. The processes end each other where one fails. Should one be too stuck for that, Slurm ends it a minute after the
        first has ended; with kill-on-bad-exit, as some clusters have it, it would at once, in the middle of the others' last words, which
        would then be SIGTERM and not 85. The number of CPUs isn't taken from the job. GPUs are left to the run: each process is shown all of
        its node's and takes its own, so that those of one node can reach each other."""
        cpus = [f"--cpus-per-task={self.settings.cpus_per_task}"] * bool(self.settings.cpus_per_task)
        return shlex.join(["--kill-on-bad-exit=0", "--wait=60", *cpus, *self.site.srun])

    def setup(self) -> list[str]:
        """Shell lines of the site."""
        modules = [f"module load {shlex.join(self.site.modules)}"] * bool(self.site.modules)
        return [*modules, *(f"export {name}={shlex.quote(value)}" for name, value in self.site.environment.items()), *self.site.setup]

    def about(self) -> dict[str, object]:
        """What every script says of itself, where it runs, and with what."""
        return {
            "command": shlex.join(["python", "-m", "llm_jax.launch", *self.command]).replace("\n", " "),
            "site": self.site_file,
            "folder": shlex.quote(str(Path.cwd())),
            "setup": self.setup(),
            "python": self.python,
        }

    def script(self, options: list[str], run: Path | None = None, runs: Path | None = None) -> str:
        """The script of one run, or of an array of those that a file lists."""
        return render(
            "llm_jax.slurm",
            "job.sh.jinja",
            options=options,
            **self.about(),
            run=shlex.quote(str(run)) if run else None,
            runs=shlex.quote(str(runs)) if runs else None,
            srun=self.srun(),
            signal_seconds=self.settings.signal_early,
            **{key: getattr(self.settings, key) for key in ("max_restarts", "backoff_seconds")},
        )

    def resources(self) -> str:
        """What a run gets, in words."""
        s = self.settings
        what = f"{s.gpus_per_node} {s.gpu_type + ' ' if s.gpu_type else ''}GPUs" if s.gpus_per_node else "CPUs"
        processes = f"{s.tasks} process{'es' * (s.tasks > 1)}"
        until = f", {s.time}{' minutes' * s.time.isdigit()} until it is requeued" if s.time else ""
        return f"{s.nodes} node{'s' * (s.nodes > 1)} with {what}, {processes} each{until}"


def split_pairs(pairs: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """A command line's pairs: those about submitting (submit=slurm and slurm.*; without the former none), and the others."""
    own = [(key, value) for key, value in pairs if key.startswith("slurm.")]
    for key, value in pairs:
        if key == "submit":
            check_choice("submit", value, ("slurm",))
    if own and not any(key == "submit" for key, _ in pairs):
        key, value = own[0]
        raise UserError(f"{key}={value}: is about submitting; add submit=slurm")
    return [pair for pair in pairs if pair in own or pair[0] == "submit"], [pair for pair in pairs if pair not in own and pair[0] != "submit"]


def make_submission(pairs: list[tuple[str, str]], command: list[str]) -> Submission:
    """What the pairs about submitting say. Raises UserError for what they can't."""
    settings, site, path = read_settings([pair for pair in pairs if pair[0] != "submit"])
    return Submission(settings, site, path, command)


def submit_run(experiment: Experiment, submission: Submission, dry_run: bool) -> int:
    """Submits one run, or prints the script that would be. What can be wrong with it is told now, and not when the job's turn has come."""
    run_dir = Path(experiment.run_dir)
    check_fits(experiment, submission.settings)
    check_writable(run_dir)
    open_keys = ("model.vocab",) if experiment.model.vocab is None else ()
    run_folder.check_same_run(run_dir, to_yaml(experiment), open_keys=open_keys)
    folder = job.folder(run_dir)
    script = submission.script(submission.options(experiment.name, (folder / "job.log").absolute()), run=run_dir)
    if dry_run:
        print(script, end="")
        return 0
    check_slurm()
    check_not_queued([run_dir])
    settle(experiment)
    (folder / "job.sh").write_text(script)
    number = sbatch(folder / "job.sh")
    record(run_dir, number)
    print(f"submitted job {number}: {experiment.name}, {submission.resources()}")
    print(f"site settings: {submission.site_file or 'none'}")
    print(f"script: {folder / 'job.sh'}")
    print(next_steps(run_dir, folder / "job.log"))
    return 0


def next_steps(run_dir: Path, log: Path) -> str:
    """What one does with a job."""
    where = shlex.quote(str(run_dir))
    return "\n".join(
        [
            f"status: python -m llm_jax.slurm.status {where}",
            f"log:    tail -F {shlex.quote(str(log))}",
            f"cancel: python -m llm_jax.slurm.cancel {where}",
        ]
    )


def check_fits(experiment: Experiment, settings: SlurmConfig) -> None:
    """Raises UserError where the mesh doesn't fit the GPUs that are asked for."""
    if settings.gpus_per_node:
        devices = settings.nodes * settings.gpus_per_node
        try:
            sizes = mesh_sizes(experiment.layout, experiment.mesh, devices)
        except UserError as error:
            raise UserError(f"slurm.nodes={settings.nodes} slurm.gpus_per_node={settings.gpus_per_node}: {error}") from error
        used = math.prod(sizes.values())
        if used < devices:
            said = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
            raise UserError(
                f"slurm.nodes={settings.nodes} slurm.gpus_per_node={settings.gpus_per_node}: layout {experiment.layout.name} with {said} "
                f"uses {used} of {devices} GPUs; ask for {used}, or set mesh.AXIS=-1"
            )


def check_slurm() -> None:
    """Raises UserError where there is no sbatch."""
    if not shutil.which("sbatch"):
        raise UserError("submit=slurm: sbatch isn't found; run this where jobs are submitted, or --dry-run to see the script")


def check_not_queued(run_dirs: list[Path]) -> None:
    """Raises UserError where the job of one of these runs is queued or running."""
    alive = job.queued(job.job_of(run_dir) for run_dir in run_dirs)
    for run_dir in run_dirs:
        if (number := job.job_of(run_dir)) in alive:
            raise UserError(
                f"run_dir={run_dir}: its job {number} is {alive[number].state.lower()}; wait for it, or end it: "
                f"python -m llm_jax.slurm.cancel {shlex.quote(str(run_dir))}"
            )


def settle(experiment: Experiment) -> None:
    """Makes the folder of a run's job, with what the job is to run in it; an earlier job's marks are gone, and its restarts no longer count."""
    folder = job.folder(Path(experiment.run_dir))
    run_folder.make_folder(folder)
    job.cancelled(Path(experiment.run_dir)).unlink(missing_ok=True)
    write_atomic(folder / "experiment.yaml", to_yaml(experiment))
    write_json(folder / "job.json", {"job": "", "submitted": time.time()})  # its number isn't known, and the job may be faster than we are


def sbatch(script: Path, *options: str) -> str:
    """Submits a script and returns the job's number. Raises UserError with Slurm's words where it is refused."""
    done = job.slurm("sbatch", "--parsable", *options, script)
    if done.returncode:
        raise UserError(f"sbatch {script}: {job.said(done)}")
    return done.stdout.strip().split(";")[0]


def record(run_dir: Path, number: str) -> None:
    """Notes the number of a run's job."""
    write_json(job.folder(run_dir) / "job.json", {"job": number, "submitted": job.submitted(run_dir)})


def quoted(option: str) -> str:
    """An option as an #SBATCH line takes it."""
    return option if shlex.quote(option) == option else '"' + option.replace('"', '\\"') + '"'
