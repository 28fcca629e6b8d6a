"""The command `python -m llm_jax.scaling.report`: writes a report on a table of runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from llm_jax.core.arguments import argument, read_command
from llm_jax.core.command import output_folder, run_command
from llm_jax.scaling.fit.arguments import FitArguments, method_names


@dataclass(frozen=True, kw_only=True)
class ReportCommand(FitArguments):
    """Writes a report on a table of runs: python -m llm_jax.scaling.report data=TABLE.csv out=FOLDER ...

      python -m llm_jax.scaling.report data=runs/scaling/isoflop_cpu/runs.csv out=runs/scaling/isoflop_cpu
      python -m llm_jax.scaling.report data=TABLE.csv columns.parameters="Model Size" \\
          columns.flops="Training FLOP" columns.loss=loss method=parametric drop_highest_losses=5 out=FOLDER

    A prediction.json beside the table is compared with the measured losses. python -m llm_jax.scaling.fit
    --help prints the methods and their options.

    Exit codes: 0 done, 2 a mistake in the command line, or nothing to report in the table (one line names
    it).
    """

    method: str = argument("", shown="NAME", choices=method_names)
    """The fit to report. Without it approaches 2 and 3 are both tried, and a table that determines neither is
    reported as a sweep of learning rates and batches, if it is one."""
    out: Path = argument(shown="FOLDER", read=output_folder)
    """The folder for report.html (one file, readable without a network), figures/*.png, and fit.json."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(report, arguments)


def report(arguments: list[str]) -> int:
    """Reads the command line and writes the report. Raises UserError."""
    command = read_command(arguments, ReportCommand)
    if command is None:
        return 0
    from llm_jax.scaling.report import write_report  # imports JAX, which `run_command` sets up

    print(f"written: {write_report(command.data, command.out, **command.study_options())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
