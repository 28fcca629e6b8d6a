"""The entry point `python -m llm_jax.launch`: runs an experiment, or a grid of them, or submits
it to Slurm.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

from llm_jax.core.arguments import Pairs, flag, in_order, passed_on, read_command
from llm_jax.core.command import run_command
from llm_jax.core.errors import UserError
from llm_jax.core.log import no_log
from llm_jax.pretrained.arguments import preset_names
from llm_jax.processes.group import Group
from llm_jax.processes.launcher import LaunchedProcess, read_task


@dataclass(frozen=True, kw_only=True)
class LaunchCommand:
    """Runs an experiment: python -m llm_jax.launch experiment=NAME key=value ...

      python -m llm_jax.launch experiment=quickstart
      python -m llm_jax.launch experiment=quickstart train.steps=100 optimizer.learning_rate=1e-3
      python -m llm_jax.launch experiment=path/to/mine.py layout=fsdp run_dir=runs/mine/first

    A file may describe a grid of runs (docs/scaling.md). Its points then run one after another, finished ones
    are skipped, and runs.csv has a row for each; key=value overrides the value of every point:

      python -m llm_jax.launch experiment=scaling/isoflop_cpu --dry-run
      python -m llm_jax.launch experiment=scaling/isoflop_cpu grid.points=3:7
      python -m llm_jax.launch experiment=NAME grid.executor=vmap grid.at_once=8      runs of one shape in one program

    submit=slurm writes a job script into the run folder and submits it to Slurm (docs/cluster.md), for one
    run or for a grid's runs. The job saves before its time limit and when it is preempted, and requeues
    itself until the run is finished:

      python -m llm_jax.launch experiment=NAME submit=slurm slurm.nodes=4 slurm.gpus_per_node=4 slurm.time=24:00:00 --dry-run
      python -m llm_jax.slurm.status RUN_DIR
      python -m llm_jax.slurm.cancel RUN_DIR

    To try a layout without its devices: XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates 8 on a
    CPU.

    Exit codes: 0 done, 1 points of a grid failed or diverged (the last lines name them; or a bug, with its
    traceback), 2 an invalid argument or value (one line names it), 3 the run diverged, 85 stopped by SIGTERM,
    SIGUSR1 or the end of a job's time with everything saved (rerun the command to resume), 130 stopped by
    Ctrl-C, also with everything saved, 86 another process of the run failed (one line names it), 87 the same
    fault at the same step twice: a restart would not help.
    """  # noqa: E501

    experiment: Pairs = passed_on(lambda name: name == "experiment", "experiment=NAME")
    """A file under experiments/ (experiment=scaling/x for a subfolder), a path to a .py file anywhere, or a
    run folder's config.yaml."""
    layout: Pairs = passed_on(lambda name: name == "layout", "layout=NAME", choices=preset_names)
    """A preset (docs/layouts.md)."""
    start: Pairs = passed_on(lambda name: name == "from", "from=FOLDER")
    """Initialises from this run folder, Hugging Face folder or GGUF file: its model config, tokenizer and
    latest weights (experiment=continue_pretraining)."""
    adapter: Pairs = passed_on(lambda name: name == "adapter.from", "adapter.from=FOLDER")
    """Trains the adapter in this PEFT folder further, on the model of from=FOLDER."""
    teacher: Pairs = passed_on(lambda name: name == "teacher", "teacher=FOLDER")
    """Learns from the model in this run folder or Hugging Face folder (experiment=distill)."""
    run_dir: Pairs = passed_on(lambda name: name == "run_dir", "run_dir=FOLDER")
    """The run folder; rerun the same command to resume."""
    submit: Pairs = passed_on(lambda name: name == "submit", "submit=slurm")
    """Submits to Slurm instead of running here."""
    slurm: Pairs = passed_on(lambda name: name.startswith("slurm."), "slurm.KEY=VALUE")
    """With submit=slurm: nodes, gpus_per_node, gpu_type, tasks_per_node (default: one process per GPU),
    cpus_per_task, memory, time, partition, account, qos, constraint, reservation, at_once (runs of a grid at
    the same time), max_restarts (in a row without progress), backoff_seconds, signal_seconds, site (a file
    with the settings of a site)."""
    overrides: Pairs = passed_on(lambda name: True, "KEY=VALUE")
    """Overrides one value of the experiment: model.layers=8, data.source=text.jsonl, mesh.tensor=2. --show
    prints all keys."""
    list_experiments: bool = flag("list")
    """Prints every experiment with its purpose, and stops."""
    show: bool = flag("show")
    """Prints the whole configuration, and stops."""
    dry_run: bool = flag("dry-run")
    """Prints a grid's points (parameters, tokens, FLOPs, estimated hours) or, with submit=slurm, the job
    script, and stops."""
    go_on: bool = flag("go-on")
    """For the job that waits for a grid's runs: submits the runs that their results require, or fits and
    reports."""
    given: Pairs = in_order()

    @property
    def flags(self) -> list[str]:
        """The flags that are given."""
        names = {
            "--list": self.list_experiments,
            "--show": self.show,
            "--dry-run": self.dry_run,
            "--go-on": self.go_on,
        }
        return [name for name, is_given in names.items() if is_given]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(launch, arguments)


def launch(arguments: list[str]) -> int:
    """Runs the command line and returns its exit code; mistakes in it raise UserError."""
    command = read_command(arguments, LaunchCommand)
    if command is None:
        return 0
    begun = time.monotonic()
    # a submission is one process, even where it is started inside a job
    task = LaunchedProcess() if command.submit else read_task(os.environ)
    with Group(task) as group:  # before JAX is imported, so that signals are handled from here on
        return launch_experiment(command.flags, list(command.given), group, begun)


def launch_experiment(flags: list[str], pairs: list[tuple[str, str]], group: Group, begun: float) -> int:
    """Runs the command line as one process of the group. begun: this process's start, as `time.monotonic()`
    counts."""
    from llm_jax import experiment as experiments
    from llm_jax.run.initial_weights import with_command_line, with_dtype_for
    from llm_jax.slurm.submit import make_submission, split_pairs, submit_run

    if "--list" in flags:
        known = experiments.list_experiments()
        width = max(map(len, known), default=0)
        for name, path in known.items():
            print(f"{name:<{width}}  {experiments.purpose(path)}")
        return 0

    name = experiments.experiment_name(pairs)
    command = [f"{key}={value}" for key, value in pairs]
    about_submitting, pairs = split_pairs(pairs)
    submission = make_submission(about_submitting, command) if about_submitting else None
    if "--go-on" in flags and not submission:
        raise UserError("--go-on: is for a grid whose runs were submitted; add submit=slurm")
    made = experiments.load_file(name)
    if is_grid(made):
        from llm_jax.scaling.command import launch_grid

        if source := next((value for key, value in pairs if key == "from"), None):
            raise UserError(
                f"from={source}: is for one run, and experiment={name} is a grid; write train.start_from "
                "into the grid's base"
            )
        return launch_grid(
            made, name, flags, [pair for pair in pairs if pair[0] != "experiment"], group, submission
        )
    if "--go-on" in flags:
        raise UserError(f"--go-on: is for a grid whose runs were submitted, and experiment={name} is one run")
    if "--dry-run" in flags and not submission:
        raise UserError(
            f"--dry-run: is for grids and for submit=slurm, and experiment={name} is one run; --show "
            "prints its configuration"
        )
    chosen = with_command_line(experiments.as_experiment(made, name), pairs)
    if "--show" in flags:
        print(experiments.to_yaml(chosen), end="")
        return 0
    if submission:
        return submit_run(chosen, submission, dry_run="--dry-run" in flags)

    import jax

    from llm_jax.processes import distributed
    from llm_jax.run.prepare import NO_SERVICES, RunServices
    from llm_jax.run.run import run

    group.join(chosen.cluster)
    with distributed.started(group, chosen.cluster):
        log = print if group.task.rank == 0 else no_log
        chosen = with_dtype_for(chosen, pairs, jax.default_backend(), log)
        services = NO_SERVICES
        if chosen.evaluate.tasks:
            from llm_jax.evaluate.in_training import task_scores  # which no other run waits for

            services = RunServices(tasks=task_scores)
        return run(chosen, group, begun, services)


def is_grid(made: object) -> bool:
    """Whether experiment() returned a grid; without importing what only grids need."""
    grids = sys.modules.get("llm_jax.scaling.grid")
    return grids is not None and isinstance(made, grids.Grid)


if __name__ == "__main__":
    sys.exit(main())
