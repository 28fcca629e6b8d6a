"""The keys that `python -m llm_jax.scaling.fit` and `llm_jax.scaling.report` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.arguments import Pairs, argument, passed_on
from llm_jax.core.command import output_folder
from llm_jax.core.errors import UserError


def method_names() -> list[str]:
    """The methods by which a table can be fitted."""
    from llm_jax.scaling.fit.methods import METHODS  # imports JAX, which `run_command` sets up

    return list(METHODS)


@dataclass(frozen=True, kw_only=True)
class FitArguments:
    """A table of runs, and how it is read and fitted."""

    data: Path = argument(shown="TABLE.csv")
    """A .csv, .tsv, .jsonl (each also as .gz) or .parquet with one run a row; a runs.csv of a grid needs no
    columns.*. Numbers may be written 31M, 1.3B or 1,234."""
    columns: dict[str, str] = argument({}, entry="X", shown="NAME")
    """The column that is X: parameters, tokens, flops, loss (nats a token), unique_tokens, accuracy, run;
    held_out (yes/no: not fitted but predicted), name, seeds. Tokens are flops/(6 N) where the table has
    none."""
    best_of: str = argument("", shown="COLUMN,...")
    """Keeps the run of lowest loss of those that differ in these columns alone: best_of=learning_rate of a
    sweep."""
    convention: str = argument("", shown="NAME")
    """Which N and which FLOPs of a runs.csv are fitted: 6nd, 6nd_non_embedding, 6nd_with_head, exact."""
    method: str = argument("", shown="NAME", choices=method_names)
    """How the table is fitted."""
    options: Pairs = passed_on(lambda name: True, "OPTION=VALUE")
    """An option of the method."""
    out: Path | None = argument(None, shown="FOLDER", read=output_folder)
    """The folder for fit.json, and report.html with its figures."""

    def check(self) -> None:
        """Raises UserError for options without a method."""
        if self.options and not self.method:
            key, value = self.options[0]
            raise UserError(
                f"{key}={value}: is an option of a method, or no key at all; give method=NAME with it "
                f"(one of {', '.join(method_names())})"
            )

    def study_options(self) -> dict[str, Any]:
        """How the table is to be read and fitted: arguments of `write_report`. Raises UserError for options
        that the method has not."""
        from llm_jax.scaling.fit.methods import read_option

        options = {key: read_option(self.method, key, value) for key, value in self.options}
        return {
            "method": self.method,
            "mapping": self.columns,
            "convention": self.convention,
            "options": options,
            "best_of": tuple(name.strip() for name in self.best_of.split(",") if name.strip()),
        }
