"""The command `python -m llm_jax.scaling.fit`: fits a scaling law to a table of runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from llm_jax.core.arguments import argument, read_command
from llm_jax.core.command import run_command
from llm_jax.scaling.fit.arguments import FitArguments, method_names


@dataclass(frozen=True, kw_only=True)
class FitCommand(FitArguments):
    """Fits a scaling law to a table of runs: python -m llm_jax.scaling.fit data=TABLE.csv method=NAME ...

      python -m llm_jax.scaling.fit data=runs/scaling/isoflop_cpu/runs.csv method=isoflop \\
          out=runs/scaling/isoflop_cpu
      python -m llm_jax.scaling.fit data=TABLE.csv columns.parameters="Model Size" \\
          columns.flops="Training FLOP" columns.loss=loss method=parametric drop_highest_losses=5 out=FOLDER

    Exit codes: 0 done, 2 a mistake in the command line, or data that don't determine the fit (one line names
    it).
    """

    method: str = argument(shown="NAME", choices=method_names)
    """How the table is fitted; the methods are below, with their options and the options' defaults."""

    @staticmethod
    def more_help() -> str:
        """The methods, with the columns and options that they take."""
        return "Methods:\n" + describe()


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(fit, arguments)


def fit(arguments: list[str]) -> int:
    """Reads the command line, fits the table, and prints and writes the fit. Raises UserError."""
    command = read_command(arguments, FitCommand)
    if command is None:
        return 0
    from llm_jax.scaling.fit.methods import METHODS  # these import JAX, which `run_command` sets up
    from llm_jax.scaling.fit.show import print_fit
    from llm_jax.scaling.fit.table import read_columns
    from llm_jax.scaling.report import write_report

    method, study = METHODS[command.method], command.study_options()
    columns, convention, notes = read_columns(
        command.data,
        command.columns,
        command.convention,
        method.needs,
        method.may,
        method.spare,
        study["best_of"],
    )
    made = method.fit(**columns, **study["options"], convention=convention)
    print_fit(made, notes)
    if command.out:
        page = write_report(command.data, command.out, fit=made, notes=notes, **study)
        print(f"written: {command.out / 'fit.json'}, {page}")
    return 0


SHOWN = {None: "null", True: "true", False: "false"}
"""Values of options as the command line has them."""


def describe() -> str:
    """The methods, their columns and options, for --help."""
    from llm_jax.scaling.fit.methods import METHODS

    lines = []
    for name, method in METHODS.items():
        optional = f" ({', '.join(method.may)})" if method.may else ""
        lines.append(f"  {name:<15} {method.purpose}; from {', '.join(method.needs)}{optional}")
        lines.append(
            " " * 18
            + " ".join(
                f"{key}={SHOWN.get(value, value) if isinstance(value, bool | None) else value}"
                for key, value in method.options().items()
            )
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
