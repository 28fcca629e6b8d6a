"""What a table of runs is asked before it is fitted: its units, repeated runs, sweeps and schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llm_jax.core.errors import UserError, nearest
from llm_jax.core.format import counted, factor, listed, short
from llm_jax.scaling.fit.law import FLOPS_A_WEIGHT
from llm_jax.scaling.fit.repeats import cell_numbers

if TYPE_CHECKING:
    import pandas as pd

GUESSING = 13.0
"""Nats: the loss of guessing among 440,000 tokens, for a table that doesn't have its vocabulary."""
FEWEST_TOKENS, MOST_TOKENS = 1e-2, 1e5
"""Tokens a parameter, of the median run, that no training has."""
FEW_TOKENS = 1.0
"""Fewer tokens a parameter, of the median run, are asked about."""
OFF_6ND = 100.0
"""FLOPs that differ from 6 N D by more than this factor, in the median run, are in another unit."""
CELL = ("parameters", "tokens", "unique_tokens")
"""Columns by which runs are of one size and one number of tokens."""
OUTCOMES = (
    "loss",
    "acc",
    "err",
    "bits",
    "bpb",
    "ppl",
    "perplexity",
    "second",
    "time",
    "mfu",
    "flops",
    "hash",
    "run_dir",
    "reason",
    "name",
    "status",
)
"""Parts of the names of columns that are no settings of a run."""
USUAL = ("learning_rate", "lr", "batch_size")
"""Columns that are named first of those in which runs differ; the seed comes last."""
MOST_NAMED = 4


def check_units(arrays: Mapping[str, np.ndarray], names: Mapping[str, str], table: pd.DataFrame) -> None:
    """Raises UserError for columns that can't be in the units of a fit: nats a token, weights, tokens,
    FLOPs."""
    column = {name: f"columns.{name}={names.get(name, name)}" for name in arrays}
    if "loss" in arrays and len(arrays["loss"]):
        known = "vocab" in table and (table["vocab"] > 1).all() if "vocab" in table else False
        most = float(np.log(table["vocab"].max())) if known else GUESSING
        middle = float(np.median(arrays["loss"]))
        if middle > most:
            raise UserError(
                f"{column['loss']}: the median is {middle:.4g}, above {most:.4g} nats, the loss of guessing"
                f"{' in this vocabulary' if known else ''}. Is it a perplexity? Give its natural logarithm."
            )
    if {"parameters", "tokens"} <= set(arrays):
        n, d = (float(np.median(arrays[name])) for name in ("parameters", "tokens"))
        ratio = median_ratio(arrays["tokens"], arrays["parameters"])
        if ratio > MOST_TOKENS:
            raise UserError(
                f"{column['parameters']}: {n:.4g} weights on {d:.4g} tokens (medians). Are the sizes in "
                "millions? Write 31M, or 31e6."
            )
        if ratio < FEWEST_TOKENS:
            raise UserError(
                f"{column['tokens']}: {d:.4g} tokens for {short(n)} weights (medians). Are the tokens in "
                "millions or billions? Write 20B, or 20e9."
            )
    if {"parameters", "tokens", "flops"} <= set(arrays):
        times = median_ratio(arrays["flops"], arrays["parameters"] * arrays["tokens"]) / FLOPS_A_WEIGHT
        if times <= 1 / OFF_6ND or times >= OFF_6ND:
            raise UserError(
                f"{column['flops']}: the median run has {factor(times) if times > 1e-3 else f'{times:.3g}'} "
                "times 6 N D. Are sizes, tokens or FLOPs in another unit (petaFLOP days, millions)?"
            )


def median_ratio(above: np.ndarray, below: np.ndarray) -> float:
    """The median of above / below where both are positive (others are refused by the fit); NaN for none."""
    positive = (above > 0) & (below > 0)
    return float(np.median(above[positive] / below[positive])) if positive.any() else float("nan")


def questions(arrays: Mapping[str, np.ndarray], names: Mapping[str, str]) -> list[str]:
    """Notes that ask about columns whose units are unlikely, but possible."""
    found = []
    if "loss" in arrays and any(part in names.get("loss", "").lower() for part in ("bpb", "bits", "bit_")):
        found.append(
            f"is the loss, {names['loss']}, in bits? Laws are fitted in any unit, but delta, loss_noise and "
            "the report mean nats: multiply it by 0.693"
        )
    if "loss" in arrays and any(part in names.get("loss", "").lower() for part in ("ppl", "perplex")):
        found.append(f"is the loss, {names['loss']}, a perplexity? Laws are of its natural logarithm")
    if {"parameters", "tokens"} <= set(arrays):
        ratio = median_ratio(arrays["tokens"], arrays["parameters"])
        if ratio < FEW_TOKENS:
            found.append(
                f"is it right that half of the runs have less than {ratio:.2g} tokens a parameter? Sizes and "
                "tokens must be in one unit"
            )
    return found


def keep_best(
    arrays: Mapping[str, np.ndarray],
    table: pd.DataFrame,
    best_of: tuple[str, ...],
    names: Mapping[str, str],
    needs: tuple[str, ...],
    notes: list[str],
) -> np.ndarray:
    """[n], bool: of the runs that differ in the columns `best_of` alone, those of lowest loss.

    Runs of another size, number of tokens, seed or other setting remain. Raises UserError for a column that
    there is not, and where runs can't be compared.
    """
    key = f"best_of={','.join(best_of)}"
    for column in best_of:
        if column not in table:
            raise UserError(f"{key}: there is no column {column}; {nearest(column, map(str, table.columns))}")
    if "run" in needs:
        raise UserError(f"{key}: an envelope takes the lowest curve at each compute already. Leave it out.")
    cell = [name for name in CELL if name in arrays] or [name for name in ("flops",) if name in arrays]
    if "loss" not in arrays or not cell:
        raise UserError(
            f"{key}: needs the loss, and parameters and tokens (or flops) to compare runs of one size. Map "
            "them with columns.X=NAME."
        )
    known = groups_of(table, [cell_numbers(arrays, cell)], best_of)
    others = [column for column in settings_of(table, names) if column not in best_of]
    others = [column for column in others if groups_of(table, [known], [column]).max() > known.max()]
    groups = groups_of(table, [cell_numbers(arrays, cell)], others)
    order = np.lexsort((arrays["loss"], groups))
    kept = np.zeros(len(groups), bool)
    kept[order[np.concatenate([[True], np.diff(groups[order]) > 0])]] = True
    notes.append(
        f"{key}: {kept.sum()} of {len(kept)} runs kept, the lowest loss of each size and number of tokens"
    )
    return kept


def groups_of(table: pd.DataFrame, codes: list[np.ndarray], columns: Sequence[str]) -> np.ndarray:
    """The number [n] of each run's group: runs with equal codes [n], and equal values in the columns."""
    every = [*codes, *(table[column].astype(str).factorize()[0] for column in columns)]
    return np.unique(np.stack(every, -1), axis=0, return_inverse=True)[1].reshape(-1)


def settings_of(table: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """The columns of a table that are settings of its runs: those of few values, but for what a fit reads and
    what a run results in."""
    taken = set(names.values()) - {names.get("seeds")}
    found = []
    for column in map(str, table.columns):
        if column in taken or any(part in column.lower() for part in OUTCOMES):
            continue
        if 2 <= table[column].nunique() <= max(2, len(table) // 2):
            found.append(column)
    return found


def note_repeats(
    arrays: Mapping[str, np.ndarray],
    table: pd.DataFrame,
    names: Mapping[str, str],
    needs: tuple[str, ...],
    notes: list[str],
) -> list[str]:
    """Appends a note on runs that repeat a size and number of tokens; returns the settings, but for the seed,
    in which they differ."""
    cell = [name for name in CELL if name in arrays]
    if "run" in needs or len(cell) < 2:
        return []
    cells = cell_numbers(arrays, cell)
    different = int(cells.max()) + 1
    note_checkpoints(arrays, table, names, notes)
    if different == len(cells):
        return []
    differ, known = [], cells
    for column in sorted(settings_of(table, names), key=lambda c: (c == names.get("seeds"), c not in USUAL)):
        finer = groups_of(
            table, [known], [column]
        )  # the same where the columns before tell it: steps of a batch
        if finer.max() > known.max():
            differ.append(column)
            known = finer
    sweep = [column for column in differ if column != names.get("seeds")]
    copies = 0
    if "loss" in arrays:
        copies = len(cells) - 1 - int(groups_of(table, [cell_numbers(arrays, [*cell, "loss"])], differ).max())
    text = f"{len(cells)} runs have {different} different sizes and numbers of tokens"
    if copies:
        text += f"; {copies} are copies of another, with its loss"
    if differ:
        shown = differ[:MOST_NAMED] + (["more"] if len(differ) > MOST_NAMED else [])
        text += f"; the others differ in {listed(shown)}" if copies else f", and differ in {listed(shown)}"
    whole = "tokens" in needs  # the others take the lowest loss
    notes.append(
        text + (". Runs of one size and number of tokens count as one in the intervals" if whole else "")
    )
    if sweep and whole:
        notes.append(
            f"a sweep is in the fit with its bad runs too: best_of={','.join(sweep)} keeps the best of each "
            "size and number of tokens"
        )
    return sweep


def note_checkpoints(
    arrays: Mapping[str, np.ndarray], table: pd.DataFrame, names: Mapping[str, str], notes: list[str]
) -> None:
    """Appends a note where runs of one name and size have several numbers of tokens."""
    column = names.get("name", "name")
    if column not in table or not {"parameters", "tokens"} <= set(arrays):
        return
    named = table[column].astype(str).factorize()[0]
    own = np.unique(np.stack([named, cell_numbers(arrays, ("parameters",))], -1), axis=0)
    all_tokens = cell_numbers(arrays, ("parameters", "tokens"))
    different = len(np.unique(np.stack([named, all_tokens], -1), axis=0))
    if different > len(own):
        notes.append(
            f"{len(own)} runs by {column} and size have {different} numbers of tokens: are checkpoints, "
            "or parts of resumed runs, among the rows? A law is of losses at the end of their schedule"
        )


def note_schedules(table: pd.DataFrame, notes: list[str]) -> None:
    """Appends a note where the runs of a table have several schedules."""
    if "schedule" not in table:
        return
    named = table["schedule"].dropna().astype(str)
    if named.nunique() > 1:
        counts = listed([f"{count} {name}" for name, count in named.value_counts().items()])
        rare = table.index[table["schedule"].astype(str) == named.value_counts().index[-1]]
        rows = ", ".join(
            str(table["name"][i]) if "name" in table else f"row {i + 1}" for i in rare[:MOST_NAMED]
        )
        more = f" and {len(rare) - MOST_NAMED} more" if len(rare) > MOST_NAMED else ""
        notes.append(
            f"runs of different schedules are in one fit: {counts} ({rows}{more}). Losses of different "
            f"schedules don't lie on one law; {counted(len(rare), 'run')} may have to be left out"
        )
