"""Writes a report on a table of runs: python -m llm_jax.scaling.report data=TABLE out=FOLDER ...

  python -m llm_jax.scaling.report data=runs/scaling/isoflop_cpu/runs.csv out=runs/scaling/isoflop_cpu
  python -m llm_jax.scaling.report data=TABLE.csv columns.parameters="Model Size" columns.flops="Training FLOP" columns.loss=loss \\
      method=parametric drop_highest_losses=5 out=FOLDER

out=FOLDER        folder for report.html (one file, readable without a network), figures/*.png, and fit.json
method=NAME       the fit to report; by default approaches 2 and 3 are both tried, and a table that determines neither is reported as
                  a sweep of learning rates and batches if it is one
  --help          this text

All other keys, and a method's options, are those of python -m llm_jax.scaling.fit (see its --help). A prediction.json beside the
table is compared with the measured losses. Exit codes: 0 done, 2 a mistake in the arguments, or a table without anything to report.
"""

from __future__ import annotations

import sys

from llm_jax.core.command import read_arguments, run_command


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(report, arguments)


def report(arguments: list[str]) -> int:
    """Runs the command line; raises UserError for a mistake in it."""
    flags, pairs = read_arguments(arguments, ("--help", "-h"))
    if not arguments or flags:
        print(__doc__)
        return 0
    from llm_jax.scaling.fit.__main__ import read_keys
    from llm_jax.scaling.report import write_report

    parsed = read_keys(pairs, need=("data", "out"))
    assert parsed.out
    print(f"written: {write_report(parsed.data, parsed.out, **parsed.how)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
