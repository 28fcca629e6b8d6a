"""The table of runs from any run folders, and other people's tables as ours."""

from __future__ import annotations

import pandas as pd
import pytest

from llm_jax.scaling.collect import COLUMNS, main, read_table
from tests.tiny_run import launch, summary


def test_run_folders_become_rows_wherever_they_lie(tiny, tmp_path, capsys):
    for name, steps in (("a", 2), ("b", 3)):
        assert (
            launch(
                f"experiment={tiny}", f"run_dir={tmp_path / 'runs' / 'deep' / name}", f"train.steps={steps}"
            )
            == 0
        )
    (tmp_path / "runs" / "deep" / "b" / "summary.json").unlink()  # as of a run that was killed
    capsys.readouterr()
    assert main([str(tmp_path / "runs"), f"out={tmp_path / 'runs.csv'}"]) == 0
    assert capsys.readouterr().out == f"2 runs: {tmp_path / 'runs.csv'}\n"
    found = pd.read_csv(tmp_path / "runs.csv").set_index("name")
    assert tuple(found.reset_index().columns) == COLUMNS
    assert dict(found["status"]) == {"a": "finished", "b": "unfinished"}
    recorded = summary(tmp_path / "runs" / "deep" / "a")
    assert found.loc["a"]["eval_loss"] == pytest.approx(recorded["eval_loss"], rel=1e-12)
    assert found.loc["a"]["tokens"] == recorded["tokens"] == recorded["unique_tokens"]
    assert (
        main(
            [
                str(tmp_path / "runs" / "deep" / "a"),
                str(tmp_path / "runs"),
                f"out={tmp_path / 'runs.parquet'}",
            ]
        )
        == 0
    )
    assert list(pd.read_parquet(tmp_path / "runs.parquet")["name"]) == ["a", "b"]  # no run twice
    assert main([str(tmp_path / "runs" / "deep" / "a")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("a,")


@pytest.mark.parametrize("name", ["summary.json", "point.json"])
def test_a_damaged_file_of_a_run_is_named(tmp_path, capsys, name):
    (tmp_path / "config.yaml").write_text("name: x\n")
    (tmp_path / name).write_text("{")
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / name}: is damaged" in error
    assert error.count("\n") == 1


def test_a_table_of_others_is_mapped_by_the_command_line(tmp_path, capsys):
    theirs = tmp_path / "theirs.csv"
    theirs.write_text("Model Size,Training FLOP,loss,seed,what\n1e6,6e12,3.5,1,x\n2e6,1.2e13,3.25,2,y\n")
    out = tmp_path / "ours.csv"
    columns = ("columns.parameters=Model Size", "columns.flops_6nd=Training FLOP", "columns.eval_loss=loss")
    assert main([f"table={theirs}", *columns, f"out={out}"]) == 0
    found = pd.read_csv(out)
    assert list(found.columns) == [
        "parameters",
        "flops_6nd",
        "eval_loss",
        "seed",
    ]  # a column of ours needs no mapping
    assert list(found["parameters"]) == [1e6, 2e6]
    assert list(read_table(theirs, {"eval_loss": "loss"}).columns) == ["eval_loss", "seed"]
    for arguments, message in (
        (["columns.parameters=Modle Size"], "has no such column; did you mean 'Model Size'?"),
        (["columns.parametres=Model Size"], "there is no column 'parametres'; did you mean 'parameters'?"),
        (["outt=x.csv"], "there is no key 'outt'; did you mean 'out'?"),
        (["out=x.txt"], "must be a file that ends in .csv or .parquet"),
        (["out=no/x.csv"], "there is no folder no"),
        ([str(tmp_path)], "give either folders with runs in them, or table=PATH"),
    ):
        assert main([f"table={theirs}", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out=a.csv"], "give either folders with runs in them, or table=PATH"),
        (["nowhere"], "nowhere: there is no such folder"),
        (["."], "has no run folder in it"),
        (["table=no.csv"], "no.csv: there is no such file"),
        ([".", "columns.parameters=x"], "applies to table=PATH only"),
        (["--outt"], "no such option"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
