"""A report on a table of runs: one page with figures, readable without a network, beside its PNGs and
fit.json.

    from llm_jax.scaling.report import write_report
    write_report(Path("runs/scaling/isoflop_cpu/runs.csv"), Path("runs/scaling/isoflop_cpu"),
    method="isoflop")

The command is `python -m llm_jax.scaling.report data=TABLE out=FOLDER`; `python -m llm_jax.scaling.fit ...
out=FOLDER` writes it too.
"""

from llm_jax.scaling.report.write import write_report

__all__ = ["write_report"]
