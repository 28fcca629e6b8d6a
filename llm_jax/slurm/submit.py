"""Submits a run to Slurm: writes a script from job.sh.jinja into the run folder, and passes it to sbatch."""

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
    """How jobs are submitted: settings from a command line and the site's file."""

    settings: SlurmConfig
    site: SiteConfig
    site_file: str
    command: list[str]
    """The launcher's command line, without flags."""

    @property
    def python(self) -> str:
        """The shell words that start Python in the job, in its container."""
        return " ".join(filter(None, (self.site.container, shlex.quote(self.site.python or sys.executable))))

    def command_with_site(self) -> list[str]:
        """The command line with slurm.site, since the job's environment may name another site file."""
        given = any(argument.startswith("slurm.site=") for argument in self.command)
        return self.command + [f"slurm.site={self.site_file}"] * bool(self.site_file and not given)

    def options(self, name: str, log: Path) -> list[str]:
        """The sbatch options of a run, alone or in an array."""
        s = self.settings
        made = [f"--job-name={name.replace('/', '-')}", f"--nodes={s.nodes}", f"--ntasks-per-node={s.tasks}"]
        if s.gpus_per_node:
            made.append(f"--gpus-per-node={s.gpu_type + ':' if s.gpu_type else ''}{s.gpus_per_node}")
        if s.cpus_per_task:
            made.append(f"--cpus-per-task={s.cpus_per_task}")
        made += [f"--mem={s.memory}"] * bool(s.memory)
        made += [f"--{key}={getattr(s, key)}" for key in ("constraint", "reservation") if getattr(s, key)]
        return [
            *map(quoted, made),
            *self.common_options(log),
            quoted(f"--signal=USR1@{s.signal_early}"),
            *map(quoted, self.site.sbatch),
        ]

    def light_options(self, name: str, log: Path) -> list[str]:
        """The sbatch options of a job that trains nothing."""
        return [quoted(f"--job-name={name.replace('/', '-')}"), "--ntasks=1", *self.common_options(log)]

    def common_options(self, log: Path) -> list[str]:
        """The sbatch options of all jobs. Logs are appended to after a requeue; a % in a path is escaped,
        since Slurm replaces such patterns."""
        given = [
            f"--{key}={getattr(self.settings, key)}"
            for key in ("time", "partition", "account", "qos")
            if getattr(self.settings, key)
        ]
        return [
            quoted(option)
            for option in (
                *given,
                "--requeue",
                "--open-mode=append",
                f"--output={str(log).replace('%', '%%')}",
            )
        ]

    def srun(self) -> str:
        """The options of srun.

        Where one process fails, the others end by themselves; --wait has Slurm end one that can't, a minute
        later. kill-on-bad-exit, which some clusters set, would end all with SIGTERM at once, before they
        print why and end with 85. srun doesn't take the number of CPUs from the job. GPUs aren't bound: each
        process sees all of its node's and uses its own, so that those of one node can reach each other.
        """
        cpus = [f"--cpus-per-task={self.settings.cpus_per_task}"] * bool(self.settings.cpus_per_task)
        return shlex.join(["--kill-on-bad-exit=0", "--wait=60", *cpus, *self.site.srun])

    def setup(self) -> list[str]:
        """The site's shell lines, before the run: modules, environment variables, setup."""
        modules = [f"module load {shlex.join(self.site.modules)}"] * bool(self.site.modules)
        return [
            *modules,
            *(f"export {name}={shlex.quote(value)}" for name, value in self.site.environment.items()),
            *self.site.setup,
        ]

    def template_values(self) -> dict[str, object]:
        """The template values that all scripts share: the command, the folder, the setup and Python."""
        return {
            "command": shlex.join(["python", "-m", "llm_jax.launch", *self.command]).replace("\n", " "),
            "site": self.site_file,
            "folder": shlex.quote(str(Path.cwd())),
            "setup": self.setup(),
            "python": self.python,
        }

    def script(self, options: list[str], run: Path | None = None, runs: Path | None = None) -> str:
        """The script of one run (`run`: its folder), or of an array (`runs`: a file with one run folder a
        line)."""
        return render(
            "llm_jax.slurm",
            "job.sh.jinja",
            options=options,
            **self.template_values(),
            run=shlex.quote(str(run)) if run else None,
            runs=shlex.quote(str(runs)) if runs else None,
            srun=self.srun(),
            signal_seconds=self.settings.signal_early,
            **{key: getattr(self.settings, key) for key in ("max_restarts", "backoff_seconds")},
        )

    def resources(self) -> str:
        """The resources of a run, as a sentence prints them."""
        s = self.settings
        what = (
            f"{s.gpus_per_node} {s.gpu_type + ' ' if s.gpu_type else ''}GPUs" if s.gpus_per_node else "CPUs"
        )
        processes = f"{s.tasks} process{'es' * (s.tasks > 1)}"
        until = f", {s.time}{' minutes' * s.time.isdecimal()} until it is requeued" if s.time else ""
        return f"{s.nodes} node{'s' * (s.nodes > 1)} with {what}, {processes} each{until}"


def split_pairs(pairs: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """A command line's pairs in two lists: submit=slurm with slurm.*, and the others. Raises UserError for
    slurm.* without submit=slurm."""
    own = [(key, value) for key, value in pairs if key.startswith("slurm.")]
    for key, value in pairs:
        if key == "submit":
            check_choice("submit", value, ("slurm",))
    if own and not any(key == "submit" for key, _ in pairs):
        key, value = own[0]
        raise UserError(f"{key}={value}: has an effect only with submit=slurm. Add submit=slurm.")
    return [pair for pair in pairs if pair in own or pair[0] == "submit"], [
        pair for pair in pairs if pair not in own and pair[0] != "submit"
    ]


def make_submission(pairs: list[tuple[str, str]], command: list[str]) -> Submission:
    """The Submission that submit=slurm and slurm.* describe. Raises UserError for keys and values that are
    wrong."""
    settings, site, path = read_settings([pair for pair in pairs if pair[0] != "submit"])
    return Submission(settings, site, path, command)


def submit_run(experiment: Experiment, submission: Submission, dry_run: bool) -> int:
    """Submits one run, or prints its script; returns the exit code. User errors are raised now, and not when
    the job starts."""
    run_dir = Path(experiment.run_dir)
    check_fits(experiment, submission.settings)
    check_writable(run_dir)
    open_keys = ("model.vocab",) if experiment.model.vocab is None else ()
    run_folder.check_same_run(run_dir, to_yaml(experiment), open_keys=open_keys)
    folder = job.job_folder(run_dir)
    script = submission.script(
        submission.options(experiment.name, (folder / "job.log").absolute()), run=run_dir
    )
    if dry_run:
        print(script, end="")
        return 0
    check_slurm()
    check_not_queued([run_dir])
    write_job_folder(experiment)
    (folder / "job.sh").write_text(script)
    number = sbatch(folder / "job.sh")
    record_number(run_dir, number)
    print(f"submitted job {number}: {experiment.name}, {submission.resources()}")
    print(f"site settings: {submission.site_file or 'none'}")
    print(f"script: {folder / 'job.sh'}")
    print(next_steps(run_dir, folder / "job.log"))
    return 0


def next_steps(run_dir: Path, log: Path) -> str:
    """Lines with the commands that show and cancel a submitted job."""
    where = shlex.quote(str(run_dir))
    return "\n".join(
        [
            f"status: python -m llm_jax.slurm.status {where}",
            f"log:    tail -F {shlex.quote(str(log))}",
            f"cancel: python -m llm_jax.slurm.cancel {where}",
        ]
    )


def check_fits(experiment: Experiment, settings: SlurmConfig) -> None:
    """Raises UserError where the mesh doesn't fit the job's GPUs."""
    if settings.gpus_per_node:
        devices = settings.nodes * settings.gpus_per_node
        try:
            sizes = mesh_sizes(experiment.layout, experiment.mesh, devices)
        except UserError as error:
            raise UserError(
                f"slurm.nodes={settings.nodes} slurm.gpus_per_node={settings.gpus_per_node}: {error}"
            ) from error
        used = math.prod(sizes.values())
        if used < devices:
            mesh = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
            raise UserError(
                f"slurm.nodes={settings.nodes} slurm.gpus_per_node={settings.gpus_per_node}: layout "
                f"{experiment.layout.name} with {mesh} "
                f"uses {used} of {devices} GPUs. Submit with {used} GPUs, or set mesh.AXIS=-1."
            )


def check_slurm() -> None:
    """Raises UserError where sbatch isn't found."""
    if not shutil.which("sbatch"):
        raise UserError(
            "submit=slurm: sbatch isn't found. Submit from a login node of the cluster, or add --dry-run "
            "to print the script."
        )


def check_not_queued(run_dirs: list[Path]) -> None:
    """Raises UserError where the job of one of these runs is queued or running."""
    alive = job.queued_jobs(job.job_number(run_dir) for run_dir in run_dirs)
    for run_dir in run_dirs:
        if (number := job.job_number(run_dir)) in alive:
            raise UserError(
                f"run_dir={run_dir}: its job {number} is {alive[number].state.lower()}. Wait for it, or "
                "cancel it: "
                f"python -m llm_jax.slurm.cancel {shlex.quote(str(run_dir))}"
            )


def write_job_folder(experiment: Experiment) -> None:
    """Writes the folder of a run's job, with the experiment that it runs. Removes an earlier job's cancel
    mark; its restarts no longer count."""
    folder = job.job_folder(Path(experiment.run_dir))
    run_folder.make_folder(folder)
    job.cancel_mark(Path(experiment.run_dir)).unlink(missing_ok=True)
    write_atomic(folder / "experiment.yaml", to_yaml(experiment))
    # Written before the job's number is known, since it may start at once.
    write_json(folder / "job.json", {"job": "", "submitted": time.time()})


def sbatch(script: Path, *options: str) -> str:
    """Submits a script and returns the job's number. Raises UserError with Slurm's own error where Slurm
    refuses it."""
    done = job.slurm("sbatch", "--parsable", *options, script)
    if done.returncode:
        raise UserError(f"sbatch {script}: {job.error_line(done)}")
    return done.stdout.strip().split(";")[0]


def record_number(run_dir: Path, number: str) -> None:
    """Writes the number of a run's job into its job.json."""
    write_json(job.job_folder(run_dir) / "job.json", {"job": number, "submitted": job.submitted_at(run_dir)})


def quoted(option: str) -> str:
    """An option with the quotes that an #SBATCH line needs.

    Raises UserError for an option with a line end (in the name of a foreign experiment, or in a path): what
    is after it would be a command of the script.
    """
    if not option.isprintable():
        raise UserError(f"submit=slurm: {option!r} has characters that can't be printed; remove them")
    return option if shlex.quote(option) == option else '"' + option.replace('"', '\\"') + '"'
