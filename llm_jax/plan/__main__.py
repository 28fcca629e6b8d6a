"""The command `python -m llm_jax.plan`: predicts the memory and time of a layout before it runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm_jax.core.arguments import Pairs, argument, passed_on, read_command
from llm_jax.core.command import PICTURES, output_file, run_command
from llm_jax.core.errors import UserError, closest
from llm_jax.core.log import log_to_stderr
from llm_jax.layout.hardware import hardware_names

if TYPE_CHECKING:
    from llm_jax.experiment import Experiment


PICTURE_FILE = functools.partial(output_file, endings=PICTURES)


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """Predicts what a layout costs: python -m llm_jax.plan experiment=NAME devices=N hardware=NAME ...

      python -m llm_jax.plan experiment=llama3_8b devices=64 hardware=h100
      python -m llm_jax.plan experiment=llama3_8b devices=64 hardware=h100 layout=fsdp_tensor mesh.tensor=8
      python -m llm_jax.plan experiment=llama3_8b devices=64 hardware=h100 layout=all
      python -m llm_jax.plan experiment=llama3_8b devices=8 layout=fsdp_tensor picture=layout.png

    Compiles the real train step with XLA's GPU compiler for GPUs that are not here, and analyses the result:
    memory, collectives, kernels, and the time that the compiled schedule takes in a simulation. Needs the
    extra `cuda`, and no GPU.

    Exit codes: 0 done, 2 a mistake in the command line (one line names it).
    """

    experiment: Pairs = passed_on(lambda name: True, "experiment=NAME")
    """The experiment, as in llm_jax.launch; so are from=FOLDER and all overrides: layout=fsdp, mesh.tensor=8,
    train.batch_size=256. layout=all ranks every preset on every mesh that fits, by predicted tokens/s a
    device."""
    devices: int | None = argument(None, least=1)
    """Number of devices in all (required)."""
    hardware: str = argument("", shown="NAME", choices=hardware_names)
    """Kind of the devices (layout/hardware.toml has their figures and sources)."""
    compiler: Literal["gpu", "cpu"] = "gpu"
    """compiler=cpu compiles for simulated CPU devices instead: without the extra, or for hardware that XLA
    can't compile for here. It is less accurate, and the output lists in what."""
    json: Path | None = argument(None, shown="FILE", read=output_file)
    """Writes the plan as JSON."""
    trace: Path | None = argument(None, shown="FILE", read=output_file)
    """Writes the timeline as a Chrome trace (ui.perfetto.dev opens it)."""
    text: Path | None = argument(None, shown="FILE", read=output_file)
    """Writes the compiled program."""
    picture: Path | None = argument(None, shown="FILE", read=PICTURE_FILE)
    """Draws which device holds which part of each array; without hardware= nothing else is done."""

    @property
    def all_layouts(self) -> bool:
        """True for layout=all."""
        return [value for key, value in self.experiment if key == "layout"] == ["all"]

    @property
    def device_count(self) -> int:
        """Number of devices in all. Raises UserError if it is not given."""
        if self.devices is None:
            raise UserError("devices=N is missing. Give the number of devices in all")
        return self.devices

    def check(self) -> None:
        """Raises UserError for keys that layout=all excludes."""
        if not self.all_layouts:
            return
        for key in ("trace", "text", "picture"):
            if getattr(self, key):
                raise UserError(
                    f"{key}={getattr(self, key)}: needs a single layout, and layout=all plans many. Give "
                    "one layout"
                )
        for key, value in self.experiment:
            if key.startswith(("mesh", "layout.")):
                raise UserError(
                    f"{key}={value}: layout=all tries every mesh of every layout. Leave it out, or give "
                    "one layout"
                )


OWN = tuple(f.name for f in dataclasses.fields(PlanCommand) if f.name != "experiment")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(plan, arguments)


def plan(arguments: list[str]) -> int:
    """Reads the command line, plans, prints and writes. Raises UserError."""
    command = read_command(arguments, PlanCommand)
    if command is None:
        return 0
    experiment = planned_experiment(command)
    if command.picture or not command.hardware:
        draw_picture(command, experiment)
    if not command.hardware:
        return 0
    return rank_all(command, experiment) if command.all_layouts else plan_one(command, experiment)


def planned_experiment(command: PlanCommand) -> Experiment:
    """The experiment of the command line; for layout=all without its layout. Sets up the devices, so JAX must
    not have started. Raises UserError."""
    use_absent_devices(command)

    from llm_jax.run.initial_weights import experiment_from_pairs  # imports JAX

    check_keys(command.experiment)  # first: a missing key may be there, misspelled
    if not command.hardware and not command.picture:
        raise UserError(f"hardware=NAME is missing; one of: {', '.join(hardware_names())}")
    assert command.device_count
    return experiment_from_pairs(
        [pair for pair in command.experiment if not (command.all_layouts and pair[0] == "layout")]
    )


def use_absent_devices(command: PlanCommand) -> None:
    """Sets the environment before JAX starts: GPUs of this machine are not used, and CPU devices are
    simulated where they are needed."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags, simulate = os.environ.get("XLA_FLAGS", ""), "xla_force_host_platform_device_count"
    if command.devices and (command.compiler == "cpu" or command.picture) and simulate not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{simulate}={command.devices}".strip()


def check_keys(pairs: Pairs) -> None:
    """Raises UserError for a key without a dot that no experiment has: it may have been meant for this
    command, or for the experiment."""
    from llm_jax.core.config_tree import all_keys
    from llm_jax.experiment import Experiment  # imports JAX
    from llm_jax.run.initial_weights import SHORT

    fields = ("experiment", "from", *SHORT, *(f.name for f in dataclasses.fields(Experiment)))
    for key, value in pairs:
        if "." not in key and key not in fields:
            close = closest(key, (*OWN, *all_keys(Experiment())))
            raise UserError(
                f"{key}={value}: there is no key {key!r}; "
                + (f"did you mean '{close}'?" if close else "--help lists the keys")
            )


def plan_one(command: PlanCommand, experiment: Experiment) -> int:
    """Plans the experiment's layout, prints the plan and writes the files."""
    from llm_jax.layout.hardware import hardware  # these import JAX, after `use_absent_devices`
    from llm_jax.plan.plan import make_plan
    from llm_jax.plan.report import print_plan

    made, step = make_plan(experiment, hardware(command.hardware), command.device_count, command.compiler)
    if command.json:
        command.json.write_text(json.dumps(made.to_json(), indent=2) + "\n")
    if command.trace:
        command.trace.write_text(json.dumps(made.analysis.timeline.chrome_trace()))
    if command.text:
        command.text.write_text(step.text)
    print_plan(made)
    return 0


def rank_all(command: PlanCommand, experiment: Experiment) -> int:
    """Plans every layout on every mesh, prints the ranking and writes it to json=."""
    from llm_jax.layout.hardware import hardware  # these import JAX, after `use_absent_devices`
    from llm_jax.plan.report import print_ranking
    from llm_jax.plan.search import search

    ranking = search(
        experiment, hardware(command.hardware), command.device_count, command.compiler, log_to_stderr
    )
    if command.json:
        command.json.write_text(json.dumps(ranking.to_json(), indent=2) + "\n")
    print_ranking(ranking)
    return 0


def draw_picture(command: PlanCommand, experiment: Experiment) -> None:
    """Draws the experiment's layout into picture=. Needs no hardware and compiles nothing."""
    import jax  # after `use_absent_devices`

    from llm_jax.plan.picture import draw
    from llm_jax.plan.plan import plan_program, with_assumptions

    assert command.picture
    experiment, _ = with_assumptions(experiment, "cpu")
    draw(experiment, plan_program(experiment, jax.devices("cpu")[: command.device_count]), command.picture)
    print(f"drawn: {command.picture}")


if __name__ == "__main__":
    sys.exit(main())
