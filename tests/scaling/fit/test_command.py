"""The command `python -m llm_jax.scaling.fit`: what it reads, writes and prints, and its errors."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llm_jax.core.arguments import read_command
from llm_jax.scaling.fit import published_repetition, repeated_loss
from llm_jax.scaling.fit.__main__ import main
from llm_jax.scaling.fit.methods import METHODS, read_option
from llm_jax.scaling.fit.table import NAMES
from llm_jax.scaling.recommend import RecommendCommand
from tests.conftest import ROOT
from tests.scaling.fit.conftest import TRUTH, made_runs

pytestmark = pytest.mark.usefixtures("without_figures")
FOREIGN = ["columns.parameters=Model Size", "columns.flops=Training FLOP", "columns.loss=loss"]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A table of our own runs: a diverged one, whole steps that miss the budget a little, and the
    conventions' columns."""
    runs = made_runs(noise=0.0005)
    own = pd.DataFrame(
        {
            "name": [f"run{i}" for i in range(len(runs))],
            "status": "finished",
            "parameters": runs.parameters * 1.1,
            "parameters_non_embedding": runs.parameters * 0.9,
            "parameters_with_head": runs.parameters,
            "tokens": runs.tokens,
            "flops_6nd": runs.flops * 1.1,
            "flops_6nd_non_embedding": runs.flops * 0.9,
            "flops_6nd_with_head": runs.flops * 1.01,
            "flops_exact": runs.flops * 1.2,
            "flops_budget": runs.flops,
            "convention": "6nd_with_head",
            "train_loss": runs.loss + 1,
            "eval_loss": runs.loss,
        }
    )
    diverged = own.iloc[[0]].assign(status="diverged", eval_loss=None, train_loss=None)
    pd.concat([own, diverged]).to_csv(tmp_path / "runs.csv", index=False)
    pd.concat([own, diverged]).to_parquet(tmp_path / "runs.parquet", index=False)
    return tmp_path / "runs.csv"


def read(folder: Path) -> dict:
    return json.loads((folder / "fit.json").read_text())


def test_epochs_line_of_the_readme_gives_epochs_table(published, tmp_path, capsys):
    table = published / "chinchilla_epoch" / "svg_extracted_data.csv"
    options = ["method=parametric", "drop_highest_losses=5", "bootstrap=200", f"out={tmp_path / 'out'}"]
    assert main([f"data={table}", *FOREIGN, *options]) == 0
    fit = read(tmp_path / "out")
    assert fit["objective"] <= 1.018275e-3
    assert fit["parameters"]["alpha"] == pytest.approx(0.34731, abs=1e-3)
    assert fit["settings"]["runs_used"] == 240
    shown = capsys.readouterr().out
    for text in (
        "tokens are flops/(6 N)",
        "drop_highest_losses=15",
        "Kaplan et al. 2020",
        "warning: beta goes from",
        "largest compute left out and predicted",
    ):
        assert text in shown


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_own_runs_need_no_columns_and_unfinished_ones_stay_out(own, tmp_path, capsys, suffix):
    assert (
        main([f"data={own.with_suffix(suffix)}", "method=isoflop", "bootstrap=100", f"out={tmp_path}"]) == 0
    )
    fit = read(tmp_path)
    assert fit["a"] == fit["parameters"]["a"] == pytest.approx(TRUTH.a, abs=0.02)
    assert fit["a_interval_95"] == fit["intervals_95"]["a"]
    assert fit["settings"]["convention"] == "6nd_with_head"
    assert len(fit["minima"]) == 6
    assert {m["sizes"] for m in fit["minima"]} == {9}
    shown = capsys.readouterr().out
    assert "1 of 55 runs left out: 1 diverged" in shown
    assert "C is flops_budget" in shown
    assert "loss is eval_loss" in shown


def test_every_method_runs_from_a_table_and_writes_its_parameters(tmp_path, capsys):
    runs = made_runs(noise=0.0005)
    many = pd.concat(
        [runs.assign(epochs=e, tokens=runs.tokens * e, unique_tokens=runs.tokens) for e in (1, 4, 16)]
    )
    law, r_d, r_n = published_repetition()
    repeated = many.assign(
        loss=repeated_loss(
            law, many.parameters.to_numpy(), many.tokens.to_numpy(), many.unique_tokens.to_numpy(), r_d, r_n
        )
    )
    curves = pd.concat(
        [
            runs.assign(
                run="r" + runs.index.astype(str), flops=runs.flops * t, loss=runs.loss - 0.1 * np.log(t)
            )
            for t in (0.5, 1, 2)
        ]
    )
    tables = {
        "compute": runs,
        "overtraining": runs,
        "repetition": repeated,
        "accuracy": runs.assign(accuracy=1 / (1 + np.exp(4 * (runs.loss - runs.loss.median())))),
        "envelope": curves,
    }
    extra = {"repetition": ["base=muennighoff"], "accuracy": ["chance=0"], "compute": ["frontier_only=false"]}
    assert set(METHODS) == {*tables, "parametric", "isoflop"}
    for method, table in tables.items():
        table.to_csv(tmp_path / "t.csv", index=False)
        assert (
            main(
                [
                    f"data={tmp_path / 't.csv'}",
                    f"method={method}",
                    "bootstrap=40",
                    f"out={tmp_path}",
                    *extra.get(method, []),
                ]
            )
            == 0
        ), capsys.readouterr().err
        written = read(tmp_path)
        assert written["method"] == method
        assert set(written["intervals_95"]) == set(written["parameters"])
        shown = capsys.readouterr().out
        assert all(name in shown for name in written["parameters"])
        assert ("Kaplan et al. 2020" in shown) == (
            method == "envelope"
        )  # the others' a, if any, is no exponent of N*(C)


def test_convention_chooses_the_columns_of_n_and_flops(own, tmp_path):
    for convention, factor in (("6nd_with_head", 1.0), ("6nd_non_embedding", 0.9), ("6nd", 1.1)):
        assert (
            main(
                [
                    f"data={own}",
                    "method=isoflop",
                    "bootstrap=100",
                    f"out={tmp_path}",
                    f"convention={convention}",
                ]
            )
            == 0
        )
        minimum = read(tmp_path)["minima"][2]
        assert minimum["parameters"] == pytest.approx(
            factor * TRUTH.optimal(minimum["flops"] / factor)[0], rel=0.15
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=isoflop"], "data=TABLE.csv is missing"),
        (["data=nowhere.csv", "method=isoflop"], "data=nowhere.csv: there is no such file"),
        (["data={own}", "method=isoflo"], "method=isoflo: must be one of parametric, isoflop"),
        (["data={own}", "method=isoflop", "delta=3"], "delta=3: there is no key 'delta' with method=isoflop"),
        (["data={own}", "method=isoflop", "curve=spline"], "curve=spline: must be one of akima"),
        (["data={own}", "method=parametric", "bootstrap=many"], "bootstrap=many: must be a whole number"),
        (["data={own}", "method=parametric", "bootstrap=3"], "bootstrap=3: must be 0 for none, or at "
        "least 20"),
        (["data={own}", "method=parametric", "tied=maybe"], "tied=maybe: must be true or false"),
        (["data={own}", "method=parametric", "columns.size=N"], "columns.size=N: there is no column 'size'"),
        (["data={own}", "method=parametric", "columns.loss=los"], "columns.loss=los: runs.csv has no such "
        "column"),
        (["data={own}", "method=parametric", "columns.loss=name"], "columns.loss=name: runs.csv has "
        "something else than numbers"),
        (["data={own}", "method=parametric", "convention=chinchilla"], "convention=chinchilla: must be "
        "one of 6nd"),
        (["data={own}", "method=parametric", "delta=-1"], "delta=-1.0: must be above 0"),
        (["data={own}", "method=parametric", "--out"], "--out: no such option"),
        (["data={own}", "method=parametric", "seed=-1"], "seed=-1: must be 0 or more"),
        (["data={own}", "method=isoflop", "seed=-1"], "seed=-1: must be 0 or more"),
        (["data={own}", "method=parametric", "out="], "out=: must be a folder"),
        (["data={own}", "method=parametric", "out={own}"], "out={own}: "),
        (["data={own}", "method=repetition", "columns.unique_tokens=flops_exact"], "unique_tokens: 0 runs "
        "repeat tokens"),
        (["data={own}", "method=repetition", "columns.unique_tokens=eval_loss"], "base=fresh: every run "
        "repeats tokens"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_2(own, capsys, arguments, message):
    assert main([a.format(own=own) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message.format(own=own)}")
    assert error.count("\n") == 1


def test_runs_of_an_envelope_are_grouped_by_name_and_rows_without_one_left_out(tmp_path, capsys):
    rows = pd.DataFrame(
        {
            "run": ["x", "x", None],
            "flops": [1e18, 2e18, 1e18],
            "parameters": [1e8, 2e8, 1e8],
            "loss": [3.0, 2.9, 3.0],
        }
    )
    rows.to_csv(tmp_path / "curves.csv")
    assert main([f"data={tmp_path / 'curves.csv'}", "method=envelope"]) == 2
    assert "run=x: has points of several sizes" in capsys.readouterr().err


def test_a_table_without_finished_runs_raises_with_what_it_has(tmp_path, capsys):
    rows = pd.DataFrame({"status": ["done"] * 8, "parameters": 1e8, "tokens": 1e9, "loss": 3.0})
    rows.to_csv(tmp_path / "runs.csv")
    assert main([f"data={tmp_path / 'runs.csv'}", "method=parametric"]) == 2
    assert "status: the table has no finished run, but 8 done" in capsys.readouterr().err


def test_help_names_every_method_with_its_columns_and_options(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for text in ("parametric", "isoflop", "drop_highest_losses=0", "curve=akima", "columns.X=NAME"):
        assert text in shown


def test_commands_of_the_docs_have_known_keys():
    text = (ROOT / "docs" / "scaling_fits.md").read_text()
    lines = [
        shlex.split(line.split("llm_jax.scaling.", 1)[1])
        for line in re.findall(r"^(?:\$ )?python -m llm_jax\.scaling.*=.*$", text, re.M)
    ]
    assert len(lines) >= 5
    for program, *arguments in lines:
        pairs = dict(argument.split("=", 1) for argument in arguments)
        if program == "recommend":
            command = read_command(arguments, RecommendCommand)
            assert command
            assert command.budget > 1e18
            continue
        for key, value in pairs.items():
            if key.startswith("columns."):
                assert key.removeprefix("columns.") in NAMES
            elif key not in ("data", "method", "convention", "out"):
                read_option(pairs["method"], key, value)
        assert pairs.get("method", "none: a report") in METHODS or program == "report"
    assert all(f"`{method}`" in text for method in METHODS)
