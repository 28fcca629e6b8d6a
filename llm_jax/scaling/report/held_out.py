"""Held-out runs: their predictions, from before their training or by the law, and what they measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT
from llm_jax.scaling.fit.methods import METHODS
from llm_jax.scaling.fit.predict import predict
from llm_jax.scaling.report.bands import predicted_band
from llm_jax.scaling.report.study import Study


@dataclass(frozen=True)
class HeldOutRun:
    """A run that is in no fit, with its predicted and its measured loss (or accuracy)."""

    name: str
    parameters: float
    """NaN where unknown, as are the next three."""
    tokens: float
    flops: float
    loss: float
    """The measured loss, from which an accuracy is predicted."""
    predicted: float
    interval: tuple[float, float]
    """95 %, of the law; the noise of a seed comes on top."""
    measured: float | None
    before: bool
    """Whether the prediction is from before the training."""
    times_largest: float | None
    """Its FLOPs over those of the largest run fitted, if recorded."""
    unique_tokens: float = np.nan
    """NaN where unknown."""

    @property
    def epochs(self) -> float:
        """How often it sees each token; NaN where unknown."""
        return self.tokens / self.unique_tokens

    @property
    def relative_error(self) -> float | None:
        """Predicted over measured, less 1."""
        return self.predicted / self.measured - 1 if self.measured else None

    @property
    def inside(self) -> bool:
        """Whether the measured value is in the interval."""
        return self.measured is not None and self.interval[0] <= self.measured <= self.interval[1]


def held_out_runs(study: Study) -> list[HeldOutRun]:
    """The held-out runs that have a prediction: from before their training, or by the law of the report."""
    found = []
    for name, entry in study.predictions.items():
        row = study.runs[study.runs.name == name]
        flops = (
            float(row.flops.iloc[0])
            if len(row) and np.isfinite(row.flops.iloc[0])
            else FLOPS_A_WEIGHT * entry["parameters"] * entry["tokens"]
        )
        largest, cost, measured = (
            entry.get(key) for key in ("largest_flops_of_them", "flops_exact", "measured")
        )
        found.append(
            HeldOutRun(
                name, entry["parameters"], entry["tokens"], flops, measured or np.nan, entry["predicted"],
                tuple(entry["interval_95"]), measured, True, cost / largest if cost and largest else None,
            )
        )  # fmt: skip
    fit = study.law
    if fit is None:
        return found
    needs = METHODS[fit.method].needs
    target = "accuracy" if "accuracy" in needs else "loss"
    rows = study.runs[held_out_rows(study) & study.runs[list(needs)].notna().all(axis=1)]
    largest = study.fitted.flops.max()
    for _, row in rows[~rows.name.isin(study.predictions)].iterrows():
        columns: dict[str, Any] = {name: np.array([row[name]]) for name in needs}
        low, high = predicted_band(fit, columns)
        found.append(
            HeldOutRun(
                row["name"], row.parameters, row.tokens, row.flops, row.loss,
                float(predict(fit, columns)[0]), (float(low[0]), float(high[0])), float(row[target]), False,
                float(row.flops / largest) if row.flops > 0 and largest > 0 else None, row.unique_tokens,
            )
        )  # fmt: skip
    return found


def held_out_rows(study: Study) -> Any:
    """Which runs of the table are finished and held out, bool [n]."""
    return study.runs.held_out & (study.runs.status == "finished")
