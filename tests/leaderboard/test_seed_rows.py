"""Runs of a page that differ only in their seed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from llm_jax.leaderboard.board import make_columns
from llm_jax.leaderboard.disagreements import shown_items
from llm_jax.leaderboard.models import Leaderboard
from llm_jax.leaderboard.page import make_page
from llm_jax.leaderboard.seeds import families_of, seed_rows
from tests.leaderboard.made import made_board


def board_of(families: tuple[str, ...]) -> Leaderboard:
    """The made-up models as runs at one step of these families."""
    board = made_board()
    models = [dataclasses.replace(m, family=f, step=700) for m, f in zip(board.models, families, strict=True)]
    return dataclasses.replace(board, models=models)


def test_runs_of_one_family_are_a_row_with_their_mean():
    board = board_of(("a", "a", ""))
    columns = make_columns(board)
    (family,) = families_of(board)
    assert [m.name for m in family.members] == ["small", "wide"]
    rows = {row.column: row for row in seed_rows(board, columns)}
    assert list(rows) == ["all", "core", "german", "quiz", "passages", "kasus", "sums"]
    for column in (column for column in columns if column.title in rows and column.metric != "bits_per_byte"):
        row = rows[column.title]
        each = [cell.estimate.value for cell in column.cells[:2] if cell]
        assert row.values == pytest.approx(each)
        assert row.estimate.value == pytest.approx(np.mean(each))
        low, high = row.estimate.ci95
        alone = column.cells[0].estimate.ci95
        assert high - low > alone[1] - alone[0]  # two runs that differ much say little
    page = make_page(board, columns, shown_items(board, 1), 0, "")
    assert 'id="seeds"' in page
    assert "small and wide" in page


def test_without_a_family_of_two_there_is_no_table():
    board = board_of(("a", "b", ""))
    assert families_of(board) == []
    assert 'id="seeds"' not in make_page(board, make_columns(board), shown_items(board, 1), 0, "")


def test_other_steps_are_no_other_seeds():
    board = board_of(("a", "a", ""))
    models = [board.models[0], dataclasses.replace(board.models[1], step=350), board.models[2]]
    assert families_of(dataclasses.replace(board, models=models)) == []
