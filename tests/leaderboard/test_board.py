"""The numbers of a leaderboard against plain formulas, and the page and CSV that show them."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re

import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.leaderboard.board import Column, make_columns
from llm_jax.leaderboard.disagreements import shown_items
from llm_jax.leaderboard.models import Evaluation, Leaderboard
from llm_jax.leaderboard.page import make_page
from llm_jax.leaderboard.write import FIELDS, write_page
from tests.leaderboard.made import made_board


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    return made_board()


@pytest.fixture(scope="module")
def columns(board) -> dict[str, Column]:
    return {column.key: column for column in make_columns(board)}


def samples_of(board, model, task):
    return board.models[model].evaluations[task].samples


def right(sample, unit):
    """Whether the gold choice is the most probable by character or as a whole, written out."""
    values = [c["logprob"] / (c["characters"] if unit == "per_character" else 1) for c in sample["choices"]]
    return float(int(np.argmax(values)) == sample["gold"])


def test_columns_are_groups_then_tasks_and_then_both_in_bits_per_byte(columns):
    assert list(columns) == [
        "group:all", "group:core", "group:german", "quiz", "passages", "kasus", "sums",
        "group:all:bits", "group:core:bits", "group:german:bits",
        "quiz:bits", "passages:bits", "kasus:bits", "story:bits",
    ]  # fmt: skip
    assert columns["group:german"].tasks == ("kasus", "sums")  # the story has no accuracy
    assert columns["group:german:bits"].tasks == ("kasus", "story")


def test_scores_are_those_of_the_samples(board, columns):
    for i in range(3):
        values = [right(s, "per_character") for s in samples_of(board, i, "quiz")]
        p, n, z = np.mean(values), len(values), 1.959964
        middle, half = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + z * z / 4 / n**2)
        cell = columns["quiz"].cells[i].estimate
        assert cell.value == pytest.approx(p)
        assert cell.ci95 == pytest.approx(
            ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
        )
        bits = [-s["choices"][s["gold"]]["logprob"] / math.log(2) for s in samples_of(board, i, "story")]
        sizes = [s["choices"][s["gold"]]["bytes"] for s in samples_of(board, i, "story")]
        assert columns["story:bits"].cells[i].estimate.value == pytest.approx(sum(bits) / sum(sizes))
        assert columns["passages"].cells[i].estimate.clusters == 20
        centred = [
            (columns["quiz"].cells[i].estimate.value - 0.25) / 0.75,
            (columns["passages"].cells[i].estimate.value - 0.5) / 0.5,
        ]
        assert columns["group:core"].cells[i].estimate.value == pytest.approx(np.mean(centred))


def test_differences_are_paired_and_turn_round(board, columns):
    first, second = (
        np.array([right(s, "per_character") for s in samples_of(board, i, "quiz")]) for i in (2, 0)
    )
    up, down, n = int((first > second).sum()), int((first < second).sum()), len(first)
    one, back = columns["quiz"].differences[2][0], columns["quiz"].differences[0][2]
    assert (one.higher, one.lower, one.value) == (up, down, pytest.approx((up - down) / n))
    a, b = (up + 1) / (n + 2), (down + 1) / (n + 2)
    half = 1.959964 * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    assert one.ci95 == pytest.approx((a - b - half, a - b + half))
    assert back.ci95 == (-one.ci95[1], -one.ci95[0])
    assert (back.higher, back.lower, back.value) == (down, up, -one.value)
    assert columns["quiz"].differences[1][1] is None
    assert one.shown


def test_the_best_model_is_first_also_where_lower_is_better(columns):
    for key in ("group:all", "quiz", "story:bits", "group:all:bits"):
        ranks = [cell.rank for cell in columns[key].cells]
        assert ranks[2].worst == 1, key
        assert ranks[0].best > 1, key
    weak = columns["passages"].cells[0]
    assert weak.at_chance == (weak.estimate.ci95[0] <= 0.5 <= weak.estimate.ci95[1])


def test_a_model_without_a_task_has_no_mean_and_takes_no_rank():
    found = made_board(leave_out=[("wide", "kasus")])
    columns = {column.key: column for column in make_columns(found)}
    assert columns["kasus"].cells[1] is None
    assert columns["group:german"].cells[1] is None
    assert columns["group:all"].cells[1] is None
    assert columns["group:core"].cells[1] is not None
    assert columns["kasus"].cells[0].rank.worst == 2
    assert columns["kasus"].differences[0][1] is None


def test_a_result_that_its_samples_do_not_give_is_one_line():
    found = made_board()
    evaluations = found.models[0].evaluations
    one = evaluations["quiz"]
    evaluations["quiz"] = Evaluation({**one.result, "value": 0.9}, one.samples)  # type: ignore[index]
    with pytest.raises(UserError, match=r"/models/small: its result of quiz is 0.9, and its samples give"):
        make_columns(found)


def test_shown_items_are_those_on_which_two_models_differ(board, columns):
    shown = shown_items(board, 5)
    quiz = shown["quiz"]
    difference = columns["quiz"].differences[0][2]
    assert quiz.counts["0 2"] == difference.higher + difference.lower
    assert len(quiz.pairs["0 2"]) == 5
    for id_ in quiz.pairs["0 2"]:
        values = [quiz.answers[i][id_]["value"] for i in (0, 2)]
        assert sorted(values) == [0, 1]
        scores, gold = quiz.answers[2][id_]["scores"], quiz.items[id_]["gold"]
        assert (int(np.argmax(scores)) == gold) == bool(values[1])
    assert shown["sums"].answers[0][shown["sums"].pairs["0 1"][0]]["text"]
    assert len(shown["story"].pairs["1 2"]) == 5


def test_the_page_and_the_csv(board, columns, tmp_path):
    every = list(columns.values())
    page = make_page(board, every, shown_items(board, 4), 2, "python -m llm_jax.leaderboard a b")
    written = write_page(tmp_path / "made", page, board, every, 2)
    text = written.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text)
    ids = set(re.findall(r'id="([\w-]+)"', text))
    assert set(re.findall(r'href="#([\w-]+)"', text)) <= ids
    assert set(re.findall(r'at\("(\w+)"\)', text)) <= ids  # page.js finds what it looks for
    assert "</script><b>" not in text  # an item's text stays text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert [m["name"] for m in data["models"]] == ["small", "wide", "smol"]
    assert data["models"][0]["inspect"] == "python -m llm_jax.inspect /models/small step=700"
    assert data["columns"][3]["cells"][0][0] == pytest.approx(
        columns["quiz"].cells[0].estimate.value, abs=1e-6
    )
    assert "Contamination" in text
    with (written.parent / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(FIELDS)
    assert len(rows) == 3 * len(columns)
    row = next(
        r for r in rows if (r["model"], r["column"], r["metric"]) == ("small", "quiz", "per_character")
    )
    cell, difference = columns["quiz"].cells[0], columns["quiz"].differences[0][2]
    assert float(row["value"]) == cell.estimate.value
    assert (float(row["low"]), float(row["high"])) == cell.estimate.ci95
    assert (row["compared_with"], float(row["difference"])) == ("smol", difference.value)
    assert row["contaminated_items"] == "7"
    assert next(r for r in rows if r["model"] == "smol")["train_flops"] == ""


def test_a_page_of_one_model_has_no_comparisons(board, tmp_path):
    alone = dataclasses.replace(board, models=board.models[:1])
    columns = make_columns(alone)
    page = make_page(alone, columns, shown_items(alone, 4), 0, "x")
    assert "0 of 0" in page
    assert columns[0].cells[0].rank == (1, 1)
