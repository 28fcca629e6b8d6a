"""What a layout will cost, before it is paid for: python -m llm_jax.plan experiment=NAME devices=N hardware=NAME ...

  python -m llm_jax.plan experiment=llama3_8b devices=64 hardware=h100
  python -m llm_jax.plan experiment=llama3_8b devices=64 hardware=h100 layout=fsdp_tensor mesh.tensor=8 json=plan.json
  python -m llm_jax.plan experiment=llama3_8b devices=64 hardware=h100 layout=all
  python -m llm_jax.plan experiment=llama3_8b devices=8 layout=fsdp_tensor picture=layout.png

It compiles the real train step with XLA's own GPU compiler for GPUs that are not here, and reads the result: memory,
collectives, kernels, and the time that walking the compiled schedule takes. It needs the extra `cuda`, and no GPU.

experiment=NAME   as in llm_jax.launch; so are from=FOLDER and all overrides: layout=fsdp, mesh.tensor=8, train.batch_size=256
devices=N         how many devices in all
hardware=NAME     a40, a100_40, a100_80, h100, h200, b200, mi300x (layout/hardware.toml has their figures and sources)
layout=all        ranks every preset on every mesh that fits, by predicted tokens/s a device
compiler=cpu      compiles for simulated CPU devices instead: without the extra, or for hardware that XLA can't compile for here.
                  Less is sure then, and the output says what
json=PATH         writes the plan as JSON
trace=PATH        writes the timeline as a Chrome trace (ui.perfetto.dev opens it)
text=PATH         writes the compiled program
picture=PATH      draws which device holds which part of each array; without hardware= nothing else is done

  --help          this text

Exit codes: 0 done, 2 a mistake in what was asked (one line says which).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from llm_jax.core.command import PICTURES, output_file, read_arguments, run_command
from llm_jax.core.errors import UserError, check_choice, closest

if TYPE_CHECKING:
    from llm_jax.experiment import Experiment

FLAGS = ("--help", "-h")


@dataclasses.dataclass(frozen=True)
class PlanArguments:
    """What is this command's own; the rest of the line is the experiment's."""

    devices: str = ""
    hardware: str = ""
    compiler: str = "gpu"
    json: str = ""
    trace: str = ""
    text: str = ""
    picture: str = ""
    every: bool = False
    """layout=all"""

    def device_count(self) -> int:
        """`devices` as a number."""
        if not self.devices:
            raise UserError("devices=N is missing: how many devices in all")
        if not self.devices.isdecimal() or int(self.devices) < 1:
            raise UserError(f"devices={self.devices}: must be a whole number, at least 1")
        return int(self.devices)

    def check_paths(self) -> None:
        """Raises UserError for files that can't be written, before anything is done."""
        for key in ("json", "trace", "text", "picture"):
            if value := getattr(self, key):
                output_file(key, value, PICTURES if key == "picture" else ())

    def check_ranking(self, rest: list[tuple[str, str]]) -> None:
        """Raises UserError for what makes no sense with layout=all."""
        for key in ("trace", "text", "picture"):
            if getattr(self, key):
                raise UserError(f"{key}={getattr(self, key)}: is of one layout, and layout=all plans many; give one")
        for key, value in rest:
            if key.startswith(("mesh", "layout.")):
                raise UserError(f"{key}={value}: layout=all tries every mesh of every layout; leave it out, or give one layout")


OWN = tuple(f.name for f in dataclasses.fields(PlanArguments) if f.name != "every")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(plan, arguments)


def plan(arguments: list[str]) -> int:
    """The same, with UserErrors raised."""
    flags, pairs = read_arguments(arguments, FLAGS)
    if not arguments or flags:
        print(__doc__)
        return 0
    request, experiment, devices = read_command(pairs)
    if request.picture or not request.hardware:
        draw_picture(request, experiment, devices)
    if not request.hardware:
        return 0
    return rank_all(request, experiment, devices) if request.every else plan_one(request, experiment, devices)


def read_command(pairs: list[tuple[str, str]]) -> tuple[PlanArguments, Experiment, int]:
    """What was asked, for which experiment, on how many devices; looked at before anything is compiled."""
    rest = [(key, value) for key, value in pairs if key not in OWN]
    every = [value for key, value in rest if key == "layout"] == ["all"]
    request = PlanArguments(**{key: value for key, value in pairs if key in OWN}, every=every)
    use_absent_devices(request)

    from llm_jax.layout.hardware import hardware, hardware_names
    from llm_jax.plan.plan import Compiler
    from llm_jax.run.initial_weights import experiment_from_pairs

    check_keys(rest)
    check_choice("compiler", request.compiler, get_args(Compiler))
    if request.hardware:
        hardware(request.hardware)
    elif not request.picture:
        raise UserError(f"hardware=NAME is missing; one of: {', '.join(hardware_names())}")
    devices = request.device_count()
    request.check_paths()
    if every:
        request.check_ranking(rest)
    return request, experiment_from_pairs([p for p in rest if not (every and p[0] == "layout")]), devices


def use_absent_devices(request: PlanArguments) -> None:
    """Before JAX starts: the GPUs of this machine, if any, are left alone, and CPU devices are simulated where they are wanted."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags, simulate = os.environ.get("XLA_FLAGS", ""), "xla_force_host_platform_device_count"
    if (request.compiler == "cpu" or request.picture) and request.devices.isdecimal() and simulate not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{simulate}={request.devices}".strip()


def check_keys(pairs: list[tuple[str, str]]) -> None:
    """Raises UserError for a key that nobody has: it may have been meant for this command, or for the experiment."""
    from llm_jax.core.config_tree import all_keys
    from llm_jax.experiment import Experiment

    fields = ("experiment", "from", *(f.name for f in dataclasses.fields(Experiment)))
    for key, value in pairs:
        if "." not in key and key not in fields:
            close = closest(key, (*OWN, *all_keys(Experiment())))
            raise UserError(f"{key}={value}: there is no key {key!r}; " + (f"did you mean '{close}'?" if close else "--help says what there is"))


def plan_one(request: PlanArguments, experiment: Experiment, devices: int) -> int:
    """Plans the experiment's layout; prints and writes what was asked for."""
    from llm_jax.layout.hardware import hardware
    from llm_jax.plan.plan import make_plan
    from llm_jax.plan.report import print_plan

    made, step = make_plan(experiment, hardware(request.hardware), devices, request.compiler)  # type: ignore[arg-type]
    if request.json:
        Path(request.json).write_text(json.dumps(made.to_json(), indent=2) + "\n")
    if request.trace:
        Path(request.trace).write_text(json.dumps(made.analysis.timeline.chrome_trace()))
    if request.text:
        Path(request.text).write_text(step.text)
    print_plan(made)
    return 0


def rank_all(request: PlanArguments, experiment: Experiment, devices: int) -> int:
    """Plans every layout on every mesh; prints and writes the ranking."""
    from llm_jax.layout.hardware import hardware
    from llm_jax.plan.report import print_ranking
    from llm_jax.plan.search import search

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    ranking = search(experiment, hardware(request.hardware), devices, request.compiler, log)  # type: ignore[arg-type]
    if request.json:
        Path(request.json).write_text(json.dumps(ranking.to_json(), indent=2) + "\n")
    print_ranking(ranking)
    return 0


def draw_picture(request: PlanArguments, experiment: Experiment, devices: int) -> None:
    """Draws the experiment's layout. It needs no hardware and compiles nothing."""
    import jax

    from llm_jax.plan.picture import draw
    from llm_jax.plan.plan import plan_program, with_assumptions

    experiment, _ = with_assumptions(experiment, "cpu")
    draw(experiment, plan_program(experiment, jax.devices("cpu")[:devices]), Path(request.picture))
    print(f"drawn: {request.picture}")


if __name__ == "__main__":
    sys.exit(main())
