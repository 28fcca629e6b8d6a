"""Fits a scaling law to a table of runs: python -m llm_jax.scaling.fit data=TABLE.csv method=NAME ...

  python -m llm_jax.scaling.fit data=runs/scaling/isoflop_cpu/runs.csv method=isoflop out=runs/scaling/isoflop_cpu
  python -m llm_jax.scaling.fit data=TABLE.csv columns.parameters="Model Size" columns.flops="Training FLOP" columns.loss=loss \\
      method=parametric drop_highest_losses=5 bootstrap=1000 out=FOLDER

data=TABLE        a .csv or .parquet, a run each row; one of our own (runs.csv) needs no columns.*
columns.X=NAME    which column is X: parameters, tokens, flops, loss (nats a token), unique_tokens, accuracy, run
convention=NAME   which N and which FLOPs of our own table: 6nd, 6nd_non_embedding, 6nd_with_head, exact
out=FOLDER        writes fit.json there
method=NAME       and its options, with their defaults:
{methods}
  --help          this text

Tokens are flops/(6 N) where the table has none. Exit codes: 0 done, 2 a mistake in what was asked, or data that can't carry the
fit (one line says what).
"""

from __future__ import annotations

import sys
from pathlib import Path

from llm_jax.errors import EXIT_USER_ERROR, UserError, check_choice
from llm_jax.launch import quiet, read_arguments

OWN = ("data", "method", "convention", "out")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    try:
        return fit(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def fit(arguments: list[str]) -> int:
    """The same, with UserErrors raised."""
    quiet()
    flags, pairs = read_arguments(arguments, ("--help", "-h"))
    from llm_jax.scaling.fit.methods import METHODS, read_option

    if not arguments or flags:
        print(__doc__.replace("{methods}", describe()))
        return 0
    own = {key: value for key, value in pairs if key in OWN}
    for key in ("data", "method"):
        if not own.get(key):
            raise UserError(f"{key}={'TABLE.csv' if key == 'data' else 'NAME'} is missing (--help says what there is)")
    check_choice("method", own["method"], METHODS)
    method = METHODS[own["method"]]
    mapping = {key.removeprefix("columns."): value for key, value in pairs if key.startswith("columns.")}
    options = {key: read_option(own["method"], key, value) for key, value in pairs if key not in OWN and not key.startswith("columns.")}
    out = Path(own["out"]) if "out" in own else None
    if out and out.exists() and not out.is_dir():
        raise UserError(f"out={out}: is a file; must be a folder")

    from llm_jax.scaling.fit.result import write_json
    from llm_jax.scaling.fit.show import print_fit
    from llm_jax.scaling.fit.table import read

    columns, convention, said = read(Path(own["data"]), mapping, own.get("convention", ""), method.needs, method.may)
    made = method.fit(**columns, **options, convention=convention)
    print_fit(made, said)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_json({**made.to_json(), "data": own["data"], "data_notes": said}, out / "fit.json")
        print(f"written: {out / 'fit.json'}")
    return 0


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
