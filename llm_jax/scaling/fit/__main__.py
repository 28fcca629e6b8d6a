"""Fits a scaling law to a table of runs: python -m llm_jax.scaling.fit data=TABLE.csv method=NAME ...

  python -m llm_jax.scaling.fit data=runs/scaling/isoflop_cpu/runs.csv method=isoflop out=runs/scaling/isoflop_cpu
  python -m llm_jax.scaling.fit data=TABLE.csv columns.parameters="Model Size" columns.flops="Training FLOP" columns.loss=loss \\
      method=parametric drop_highest_losses=5 bootstrap=1000 out=FOLDER

data=TABLE        a .csv or .parquet, a run each row; one of our own (runs.csv) needs no columns.*
columns.X=NAME    which column is X: parameters, tokens, flops, loss (nats a token), unique_tokens, accuracy, run
convention=NAME   which N and which FLOPs of our own table: 6nd, 6nd_non_embedding, 6nd_with_head, exact
out=FOLDER        writes fit.json there, and report.html with its figures
method=NAME       and its options, with their defaults:
{methods}
  --help          this text

Tokens are flops/(6 N) where the table has none. Exit codes: 0 done, 2 a mistake in what was asked, or data that can't carry the
fit (one line says what).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.command import output_folder, read_arguments, run_command
from llm_jax.core.errors import UserError, check_choice

EXAMPLES = {"data": "TABLE.csv", "method": "NAME", "convention": "NAME", "out": "FOLDER"}
OWN = tuple(EXAMPLES)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(fit, arguments)


def fit(arguments: list[str]) -> int:
    """The same, with UserErrors raised."""
    flags, pairs = read_arguments(arguments, ("--help", "-h"))
    from llm_jax.scaling.fit.methods import METHODS

    if not arguments or flags:
        print(__doc__.replace("{methods}", describe()))
        return 0
    from llm_jax.scaling.fit.show import print_fit
    from llm_jax.scaling.fit.table import read_columns
    from llm_jax.scaling.report import write_report

    asked = read_keys(pairs, need=("data", "method"))
    method = METHODS[asked.method]
    columns, convention, notes = read_columns(asked.data, asked.mapping, asked.convention, method.needs, method.may)
    made = method.fit(**columns, **asked.options, convention=convention)
    print_fit(made, notes)
    if asked.out:
        page = write_report(asked.data, asked.out, fit=made, notes=notes, **asked.how)
        print(f"written: {asked.out / 'fit.json'}, {page}")
    return 0


@dataclass(frozen=True)
class FitArguments:
    """What a command line asks for."""

    data: Path
    out: Path | None
    method: str
    """Empty: not given."""
    convention: str
    mapping: dict[str, str]
    options: dict[str, Any]
    """The method's."""

    @property
    def how(self) -> dict[str, Any]:
        """How the table is to be read and fitted."""
        return {
            "method": self.method,
            "mapping": self.mapping,
            "convention": self.convention,
            "options": self.options,
        }


def read_keys(pairs: list[tuple[str, str]], need: tuple[str, ...]) -> FitArguments:
    """The keys of a command line, and those that are needed. Raises UserError for keys and values that are none."""
    from llm_jax.scaling.fit.methods import METHODS, read_option

    own = {key: value for key, value in pairs if key in OWN}
    for key in need:
        if not own.get(key):
            raise UserError(f"{key}={EXAMPLES[key]} is missing (--help says what there is)")
    method = own.get("method", "")
    if method:
        check_choice("method", method, METHODS)
    rest = [(key, value) for key, value in pairs if key not in OWN]
    mapping = {key.removeprefix("columns."): value for key, value in rest if key.startswith("columns.")}
    asked = [(key, value) for key, value in rest if not key.startswith("columns.")]
    if asked and not method:
        raise UserError(f"{'='.join(asked[0])}: is an option of a method, or no key at all; give method=NAME with it (one of {', '.join(METHODS)})")
    options = {key: read_option(method, key, value) for key, value in asked}
    out = output_folder("out", own["out"]) if "out" in own else None
    return FitArguments(Path(own["data"]), out, method, own.get("convention", ""), mapping, options)


def describe() -> str:
    """The methods, their columns and options, for --help."""
    from llm_jax.scaling.fit.methods import METHODS

    lines = []
    for name, method in METHODS.items():
        optional = f" ({', '.join(method.may)})" if method.may else ""
        lines.append(f"  {name:<15} {method.purpose}; from {', '.join(method.needs)}{optional}")
        lines.append(
            " " * 18 + " ".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in method.options().items())
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
