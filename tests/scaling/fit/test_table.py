"""What is read from a table of runs: file kinds, numbers, held-out rows, units, repeated runs and sweeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llm_jax.core.errors import UserError
from llm_jax.scaling import fit
from llm_jax.scaling.fit.__main__ import main
from llm_jax.scaling.fit.methods import METHODS
from llm_jax.scaling.fit.table import read_columns
from tests.scaling.fit.conftest import TRUTH, made_runs

LAW = ("parameters", "tokens", "loss")


def read(table: pd.DataFrame, folder: Path, method: str = "parametric", mapping=(), best_of=(), file="t.csv"):
    """The columns and the notes of a table that is written and read again."""
    table.to_csv(folder / file, index=False, sep="\t" if ".tsv" in file else ",")
    m = METHODS[method]
    columns, _, notes = read_columns(folder / file, dict(mapping), "", m.needs, m.may, m.spare, best_of)
    return columns, " | ".join(notes)


def sweep(noise: float = 0.0) -> pd.DataFrame:
    """Every (N, D) at five learning rates, the best of which is the law."""
    runs = made_runs(noise, budgets=4, sizes=5)
    rates = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    return pd.concat(
        [runs.assign(learning_rate=r, loss=runs.loss + 0.06 * np.log(r / 1e-3) ** 2) for r in rates]
    )


@pytest.mark.parametrize(
    ("yes", "no"),
    [("yes", "no"), ("True", "False"), ("TRUE", ""), ("1", "0"), ("y", "n"), ("on", "off"), (1.0, 0.0)],
)
def test_held_out_is_read_in_every_spelling(tmp_path, yes, no):
    runs = made_runs(budgets=4, sizes=5)
    top = runs.flops == runs.flops.max()
    table = runs.assign(held_out=[yes if out else no for out in top])
    columns, notes = read(table, tmp_path)
    assert len(columns["loss"]) == 15
    assert "left out: 5 runs held out by the column held_out, to be predicted" in notes
    columns, notes = read(
        table.rename(columns={"held_out": "target"}), tmp_path, mapping={"held_out": "target"}
    )
    assert len(columns["loss"]) == 15
    assert "by the column target" in notes


@pytest.mark.parametrize("value", ["maybe", "2", "held out"])
def test_another_value_of_held_out_is_refused(tmp_path, value):
    runs = made_runs(budgets=4, sizes=5).assign(held_out=["no"] * 19 + [value])
    with pytest.raises(UserError, match=rf"columns\.held_out=held_out: a value is .*{value}"):
        read(runs, tmp_path)


def test_a_grids_own_held_out_runs_are_said_to_be_the_grids(tmp_path):
    runs = made_runs(budgets=4, sizes=5)
    own = runs.assign(parameters_with_head=runs.parameters, flops_6nd_with_head=runs.flops, held_out=False)
    own.loc[0, "held_out"] = True
    assert "left out: 1 run held out by the grid, to be predicted" in read(own, tmp_path)[1]


@pytest.mark.parametrize("resampling", ["case", "residual", "subsample"])
def test_copies_of_a_table_make_no_interval_narrower(resampling):
    runs = made_runs(0.002, budgets=4, sizes=5)
    five = pd.concat([runs] * 5)
    once, many = (
        fit.parametric(t.parameters, t.tokens, t.loss, bootstrap=60, resampling=resampling, delta=np.inf)
        for t in (runs, five)
    )
    assert many.parameters["alpha"] == pytest.approx(once.parameters["alpha"], rel=1e-5)
    assert many.standard_errors["alpha"] == pytest.approx(once.standard_errors["alpha"], rel=0.3)
    assert many.standard_errors_delta["alpha"] == pytest.approx(once.standard_errors_delta["alpha"], rel=1e-3)
    assert many.settings["different_runs"] == 20


@pytest.mark.parametrize("method", ["compute_law", "overtraining", "accuracy"])
def test_copies_make_no_other_laws_interval_narrower(method):
    c, n = (a.ravel() for a in np.meshgrid(np.geomspace(1e17, 1e20, 5), np.geomspace(1e7, 1e8, 3)))
    d = c / 6 / n
    loss = TRUTH.loss(n, d) * np.exp(0.001 * np.random.default_rng(0).standard_normal(15))
    link = fit.sigmoid_link({"low": 0.25, "high": 0.9, "k": 4.0, "middle": 3.3}, loss)
    columns = {
        "compute_law": {"flops": c, "loss": loss, "parameters": n, "tokens": d},
        "overtraining": {"parameters": n, "tokens": d, "loss": loss},
        "accuracy": {"loss": loss, "accuracy": link + 0.005 * np.random.default_rng(1).standard_normal(15)},
    }[method]
    more = {"compute_law": {"frontier_only": False}, "accuracy": {"chance": 0.25, "ceiling": 0.9}}
    law = getattr(fit, method)
    once = law(**columns, bootstrap=0, **more.get(method, {}))
    five = law(**{k: np.tile(v, 5) for k, v in columns.items()}, bootstrap=0, **more.get(method, {}))
    for name, error in once.standard_errors.items():
        assert five.standard_errors[name] == pytest.approx(error, rel=0.02)


def test_repeated_runs_are_named_with_what_they_differ_in(tmp_path):
    runs = made_runs(0.002, budgets=4, sizes=5)
    _, notes = read(pd.concat([runs] * 5), tmp_path)
    assert "100 runs have 20 different sizes and numbers of tokens; 80 are copies of another" in notes
    _, notes = read(sweep(), tmp_path)
    assert "and differ in learning_rate" in notes
    assert "best_of=learning_rate keeps the best" in notes
    _, notes = read(runs, tmp_path)
    assert "different sizes" not in notes


@pytest.mark.parametrize("method", ["parametric", "isoflop", "compute", "overtraining"])
def test_best_of_gives_the_law_of_a_sweeps_best_runs(tmp_path, method):
    columns, notes = read(sweep(), tmp_path, method, best_of=("learning_rate",))
    assert "best_of=learning_rate: 20 of 100 runs kept" in notes
    np.testing.assert_allclose(np.sort(columns["loss"]), np.sort(made_runs(budgets=4, sizes=5).loss))


def test_best_of_compares_runs_of_one_seed_and_batch(tmp_path):
    table = pd.concat([sweep().assign(seed=s, batch_size=b) for s in (0, 1) for b in (8, 16)])
    assert len(read(table, tmp_path, best_of=("learning_rate",))[0]["loss"]) == 80
    assert len(read(table, tmp_path, best_of=("learning_rate", "batch_size"))[0]["loss"]) == 40
    with pytest.raises(UserError, match="best_of=lr: there is no column lr"):
        read(table, tmp_path, best_of=("lr",))


def test_seeds_are_averaged_and_their_noise_is_the_isoflop_fits(tmp_path):
    runs, rng = made_runs(budgets=4, sizes=5), np.random.default_rng(0)
    table = pd.concat([runs.assign(seed=s, loss=runs.loss + 0.008 * rng.normal(size=20)) for s in range(4)])
    columns, notes = read(table, tmp_path, "isoflop")
    assert "differ in seed" in notes
    got = fit.isoflop(**columns, bootstrap=50)
    assert got.settings["loss_noise"] == pytest.approx(0.008, rel=0.25)
    assert got.settings["loss_noise_from"] == "repeated seeds"
    assert any("seeds are averaged" in line for line in got.warnings)
    given = fit.isoflop(**columns, bootstrap=50, loss_noise=0.003)
    assert given.settings["loss_noise"] == 0.003
    both = table.assign(learning_rate=np.where(table.seed < 2, 1e-3, 3e-3))
    assert "seeds" not in read(both, tmp_path, "isoflop")[0]  # they differ in more than their seed


@pytest.mark.parametrize(
    "file", ["t.csv", "t.tsv", "t.csv.gz", "t.tsv.gz", "t.jsonl", "t.jsonl.gz", "t.parquet"]
)
def test_every_kind_of_file_gives_one_table(tmp_path, file):
    runs = made_runs(0.002, budgets=3, sizes=4)
    if ".jsonl" in file:
        runs.to_json(tmp_path / file, orient="records", lines=True, double_precision=15)
    elif file.endswith(".parquet"):
        runs.to_parquet(tmp_path / file)
    else:
        runs.to_csv(tmp_path / file, index=False, sep="\t" if ".tsv" in file else ",")
    columns, _, _ = read_columns(tmp_path / file, {}, "", LAW, ())
    for name in LAW:
        np.testing.assert_allclose(columns[name], runs[name], rtol=1e-12)


def test_numbers_are_read_as_people_write_them(tmp_path):
    texts = ["31M", "1.3B", "1,234,567", "70 m", "2e8", "125M"]
    table = pd.DataFrame({"parameters": texts, "tokens": "20G", "loss": "3.1"})
    columns, _ = read(table, tmp_path)
    assert columns["parameters"].tolist() == [31e6, 1.3e9, 1234567, 70e6, 2e8, 125e6]
    with pytest.raises(UserError, match=r"something else than numbers in this column \('big' in row 2\)"):
        read(table.assign(loss=["3.1", "big", *["3"] * 4]), tmp_path)
    with pytest.raises(UserError, match="'3,14' in row 1"):
        read(table.assign(loss="3,14"), tmp_path)


def test_a_loss_that_is_not_finite_is_a_gap(tmp_path):
    runs = made_runs(budgets=3, sizes=4)
    runs.loc[[1, 2], "loss"] = [np.inf, np.nan]
    columns, notes = read(runs, tmp_path)
    assert len(columns["loss"]) == 10
    assert "2 of 12 rows left out: a value is missing, or not finite" in notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(loss=np.exp(t.loss)), "above 13 nats.*Is it a perplexity"),
        (lambda t: t.assign(loss=t.loss + 7, vocab=1024), "above 6.931 nats.*in this vocabulary"),
        (lambda t: t.assign(parameters=t.parameters / 1e6), "Are the sizes in millions"),
        (lambda t: t.assign(tokens=t.tokens / 1e9), "Are the tokens in millions or billions"),
        (lambda t: t.assign(flops=t.flops / 8.64e19), "times 6 N D.*petaFLOP days"),
    ],
    ids=["perplexity", "above guessing", "millions", "billions", "petaFLOP days"],
)
def test_units_that_can_not_be_are_asked_about_at_once(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read(change(made_runs(budgets=3, sizes=4)), tmp_path)


@pytest.mark.parametrize(
    ("change", "mapping", "question"),
    [
        (lambda t: t.rename(columns={"loss": "bpb"}), {"loss": "bpb"}, "in bits?"),
        (lambda t: t.rename(columns={"loss": "val_ppl"}), {"loss": "val_ppl"}, "a perplexity?"),
        (lambda t: t.assign(tokens=t.parameters / 3).drop(columns="flops"), {}, "tokens a parameter?"),
    ],
    ids=["bits", "perplexity", "tokens a parameter"],
)
def test_unlikely_units_are_asked_about_before_the_fit(tmp_path, change, mapping, question):
    assert question in read(change(made_runs(budgets=3, sizes=4)), tmp_path, mapping=mapping)[1]


@pytest.mark.parametrize(
    ("file", "text", "mark"), [("t.csv", ";", "';'"), ("t.csv", "\t", "t"), ("t.tsv", ",", "','")]
)
def test_another_mark_between_columns_is_named(tmp_path, file, text, mark):
    made_runs(budgets=3, sizes=4).to_csv(tmp_path / file, index=False, sep=text)
    with pytest.raises(UserError, match=f"has .*{mark}.* between the columns. Write commas in a .csv"):
        read_columns(tmp_path / file, {}, "", LAW, ())


def test_spaces_around_titles_and_numbers_are_no_part_of_them(tmp_path):
    runs = made_runs(budgets=3, sizes=4)
    (tmp_path / "t.csv").write_text(runs.to_csv(index=False).replace(",", " , "))
    columns, _, _ = read_columns(tmp_path / "t.csv", {}, "", LAW, ())
    np.testing.assert_allclose(columns["loss"], runs.loss)


@pytest.mark.parametrize("method", ["compute_law"])
def test_a_frontier_of_too_few_runs_is_named(method):
    with pytest.raises(
        UserError, match=r"runs=1: so many of 6 runs are on the frontier.*frontier_only=false"
    ):
        getattr(fit, method)(np.geomspace(1e18, 1e20, 6), np.full(6, 3.0))


@pytest.mark.parametrize(
    ("column", "word"), [("status", "Finished"), ("state", "finished"), ("State", "FINISHED")]
)
def test_runs_that_another_tracker_calls_crashed_are_left_out(tmp_path, column, word):
    runs = made_runs(budgets=3, sizes=4).assign(**{column: [word] * 9 + ["crashed", "running", None]})
    columns, notes = read(runs, tmp_path)
    assert len(columns["loss"]) == 9
    assert "3 of 12 runs left out: 1 crashed, 1 running, 1 without a status" in notes
    other, notes = read(runs.assign(**{column: "Bavaria"}).rename(columns={column: "state"}), tmp_path)
    assert len(other["loss"]) == 12


def test_checkpoints_among_the_rows_are_asked_about(tmp_path):
    runs = made_runs(budgets=3, sizes=4)
    names = [f"{n:.3g}" for n in runs.parameters]
    assert "checkpoints" not in read(runs.assign(name=names), tmp_path)[1]
    halves = pd.concat([runs.assign(name=names), runs.assign(name=names, tokens=runs.tokens / 2)])
    assert "12 runs by name and size have 24 numbers of tokens: are checkpoints" in read(halves, tmp_path)[1]


def test_a_column_that_follows_from_the_sweep_is_no_other_setting(tmp_path):
    """The steps of a run follow from its batch, as in the step law's table."""
    table = pd.concat([sweep().assign(batch_size=b, steps=8000 // b) for b in (8, 16)])
    columns, notes = read(table, tmp_path)
    assert "best_of=learning_rate,batch_size keeps the best" in notes
    columns, notes = read(table, tmp_path, best_of=("learning_rate", "batch_size"))
    assert len(columns["loss"]) == 20
    assert "a sweep is in the fit" not in notes


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cell", ["0,1e9", "-1,1e9", "1e7,0"])
def test_a_size_that_is_none_is_named_with_its_row_and_no_warning_of_numpys(tmp_path, capsys, cell):
    path = tmp_path / "runs.csv"
    path.write_text(f"parameters,tokens,loss\n1e7,1e9,3.1\n{cell},3.0\n")
    assert main([f"data={path}", "method=parametric"]) == 2
    error = capsys.readouterr().err
    assert "in row 2 of 2: must be a number above 0" in error
    assert error.count("\n") == 1
