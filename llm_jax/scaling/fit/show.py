"""Prints the result of a fit as tables on the console."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_jax.core.format import number
from llm_jax.core.tables import make_console, show, table
from llm_jax.scaling.published import exponents

SENSITIVE = ("alpha", "beta", "a", "E")
EXPONENTS = ("parametric", "isoflop", "envelope")
"""Methods whose `a` is the exponent of N*(C)."""


def print_fit(fit: Any, notes: list[str]) -> None:
    """Prints a fit: notes on the data, estimates with errors, the extrapolation test, sensitivity, published
    exponents, warnings."""
    console = make_console()
    for line in notes:
        console.print(f"data: {line}")
    s = fit.settings
    console.print(
        f"{fit.method}: {s['law']}; {s.get('runs_used', s['runs'])} of {s['runs']} runs; objective "
        f"{fit.objective:.6e}"
    )
    show(console, f"Parameters, 95 % intervals ({interval_source(s)})", parameter_table(fit))
    if hasattr(fit, "minima"):
        show(console, "Minima", minima_table(fit))
    show(
        console,
        f"Extrapolation test: the {left_out_title(fit.method)}",
        held_out_table(fit.leave_largest_out),
    )
    if getattr(fit, "sensitivity", None):
        show(console, "Sensitivity: this fit with another choice", sensitivity_table(fit))
    if fit.method in EXPONENTS:
        show(console, "Published exponents of N* ~ C^a", published_exponents_table(fit))
    show(console, "Settings", settings_table(s))
    console.print()
    for warning in fit.warnings:
        console.print(f"warning: {warning}")


def interval_source(settings: dict[str, Any]) -> str:
    """The origin of the intervals, as text."""
    return (
        f"{settings['bootstrap']} {settings['resampling']} resamples"
        if settings["bootstrap"]
        else "the delta method, with Student's t"
    )


def left_out_title(method: str) -> str:
    """What the extrapolation test of a method leaves out, as the title of a table."""
    what = "lowest losses" if method == "accuracy" else "largest compute"
    return f"{what} left out and predicted"


def parameter_table(fit: Any) -> Any:
    """A table of the parameters: estimates, standard errors, 95 % intervals, errors of the delta method."""
    made = table("", ">estimate", ">standard error", ">from", ">to", ">delta method: error")
    delta = getattr(fit, "standard_errors_delta", {})
    for name, value in fit.parameters.items():
        low, high = fit.intervals_95[name]
        made.add_row(
            name,
            number(value),
            number(fit.standard_errors[name]),
            number(low),
            number(high),
            number(delta[name]) if name in delta else "",
        )
    return made


def minima_table(fit: Any) -> Any:
    """A table of the budgets of approach 2: each with its minimum, or why it is left out."""
    made = table(">FLOPs", ">sizes", ">N*", ">± log N*", ">D*", ">D*/N*", ">loss", "")
    for m in fit.minima:
        if m.parameters is None:
            made.add_row(f"{m.flops:.3g}", str(m.sizes), "", "", "", "", "", f"left out: {m.left_out}")
        else:
            made.add_row(
                f"{m.flops:.3g}", str(m.sizes), f"{m.parameters:.4g}", f"{m.log_error:.2f}",
                f"{m.tokens:.4g}",
                f"{m.tokens / m.parameters:.3g}", f"{m.loss:.4f}", "",
            )  # fmt: skip
    return made


def held_out_table(held_out: dict[str, Any]) -> Any:
    """A table of the extrapolation test: names and values; at most six values of an array."""
    made = table("", ">")
    for name, value in held_out.items():
        if isinstance(value, dict):
            continue
        if isinstance(value, np.ndarray):
            value = ", ".join(f"{v:.4f}" for v in value[:6]) + (", ..." if len(value) > 6 else "")
        made.add_row(name.replace("_", " "), number(value))
    return made


def sensitivity_table(fit: Any) -> Any:
    """A table of the parameters under other choices, a row each."""
    shown = [name for name in SENSITIVE if name in fit.sensitivity[0]]
    made = table("choice", *(f">{name}" for name in shown))
    for row in fit.sensitivity:
        choice = ", ".join(
            f"{key}={number(value)}" for key, value in row.items() if key not in fit.parameters
        )
        made.add_row(choice, *(number(row[name]) for name in shown))
    return made


def published_exponents_table(fit: Any) -> Any:
    """A table of the fit's exponent a and published ones, each with its convention of N and C."""
    made = table("", ">a", ">from", ">to", "convention")
    made.add_row(
        "this fit",
        f"{fit.parameters['a']:.3f}",
        *(f"{end:.3f}" for end in fit.intervals_95["a"]),
        fit.settings["convention"],
    )
    for row in exponents():
        made.add_row(
            row.name,
            f"{row.a:.3f}",
            *([f"{end:.3f}" for end in row.a_interval] if row.a_interval else ["", ""]),
            row.convention,
        )
    return made


def settings_table(settings: dict[str, Any]) -> Any:
    """A table of the fit's settings."""
    made = table("", "")
    for name, value in settings.items():
        made.add_row(name, number(value))
    return made
