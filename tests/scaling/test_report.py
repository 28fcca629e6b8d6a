"""A report has every section that its table allows and the reasons for those that are missing; its numbers
are those of fit.json."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from llm_jax.core.errors import UserError
from llm_jax.core.format import short
from llm_jax.scaling.fit import isoflop, published_repetition, repeated_loss
from llm_jax.scaling.fit.__main__ import main as fit_command
from llm_jax.scaling.report import write, write_report
from llm_jax.scaling.report.__main__ import main
from llm_jax.scaling.report.caveats import check_assumptions
from llm_jax.scaling.report.study import Study, StudyOptions, make_study
from llm_jax.scaling.report.write import FIGURES
from tests.scaling.fit.conftest import TRUTH, made_runs
from tests.scaling.fit.test_fit_law import repeated_runs

HELD_OUT_FLOPS = 1e22
SWEEP = "sweep.csv"


def runs_of_a_grid() -> pd.DataFrame:
    """IsoFLOP runs with every kind of trouble: an edge at the largest budget, a run that diverged, a held-out
    one."""
    made = made_runs(noise=0.002, budgets=5, sizes=7)
    n, top = made.parameters, made.flops.max()
    table = pd.DataFrame(
        {
            "name": [f"C{c:.0e}-N{n / 1e6:.0f}M" for c, n in zip(made.flops, n, strict=True)],
            "status": "finished", "reason": "", "run_dir": "", "parameters": 1.1 * n,
            "parameters_non_embedding": 0.85 * n - 1e6,
            "parameters_with_head": n, "tokens": made.tokens, "flops_budget": made.flops,
            "convention": "6nd_with_head", "eval_loss": made.loss,
            "flops_exact": 6.2 * n * made.tokens, "seed": 0, "schedule": "cosine", "steps": 1000,
            "warmup_steps": 50, "epochs": 0.5,
            "held_out": False,
        }
    )  # fmt: skip
    for column in ("", "_non_embedding", "_with_head"):
        table[f"flops_6nd{column}"] = 6 * table[f"parameters{column}"] * table.tokens
    best, _ = TRUTH.optimal(top)
    table = table[~((table.flops_budget == top) & (table.parameters_with_head > 0.9 * best))].reset_index(
        drop=True
    )
    table.loc[6, ["status", "reason", "eval_loss"]] = [
        "diverged",
        "loss or gradient not finite at step 17",
        np.nan,
    ]
    n, d = TRUTH.optimal(HELD_OUT_FLOPS)
    held_out = {
        "name": "held-out",
        "parameters": 1.1 * n,
        "parameters_with_head": n,
        "parameters_non_embedding": 0.85 * n - 1e6,
        "tokens": d,
    }
    held_out |= {
        "flops_budget": HELD_OUT_FLOPS,
        "flops_6nd_with_head": HELD_OUT_FLOPS,
        "eval_loss": 1.01 * TRUTH.loss(n, d),
        "held_out": True,
    }
    return pd.concat([table, pd.DataFrame([table.iloc[-1].to_dict() | held_out])], ignore_index=True)


def prediction_of(measured: float, predicted: float) -> dict:
    """A grid's prediction.json for the held-out run."""
    n, d = TRUTH.optimal(HELD_OUT_FLOPS)
    one = {
        "parameters": n,
        "tokens": d,
        "predicted": predicted,
        "interval_95": [predicted - 0.004, predicted + 0.004],
        "measured": measured,
    }
    return {
        "held-out": {
            **one,
            "relative_error": predicted / measured - 1,
            "flops_exact": 1.033e22,
            "largest_flops_of_them": 1.033e21,
        }
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A grid's folder with its report, made once."""
    folder = tmp_path_factory.mktemp("grid")
    table = runs_of_a_grid()
    for i in (0, 1, 6):
        run = folder / "points" / f"p{i}"
        run.mkdir(parents=True)
        lines = [{"step": s, "tokens": s * 1e6, "train_loss": 3 + 5 / s} for s in range(1, 40)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        table.loc[i, "run_dir"] = f"somewhere/else/{run.name}"  # the folder was moved
    table.to_csv(folder / "runs.csv", index=False)
    measured = float(table.eval_loss.iloc[-1])
    (folder / "prediction.json").write_text(json.dumps(prediction_of(measured, 0.99 * measured)))
    assert main([f"data={folder / 'runs.csv'}", f"out={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def fits(folder) -> dict[str, dict]:
    return {
        name: json.loads((folder / file).read_text())
        for name, file in (("isoflop", "fit.json"), ("parametric", "fit_parametric.json"))
    }


@pytest.fixture(scope="module")
def study(folder) -> Study:
    return make_study(folder / "runs.csv", StudyOptions())


def text_of(page: str) -> str:
    """The visible text of a page."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"</?sup>", "", page))))


def test_every_section_that_the_table_allows_is_there_and_the_reasons_for_missing_ones_too(page):
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "The fit", "IsoFLOP curves", "Compute-optimal size and tokens",
        "Loss against compute, and extrapolation", "Loss over size and tokens",
        "Residuals", "Sensitivity to curves, outliers, δ and the largest runs", "Published exponents",
        "What would make this wrong",
        "Training curves", "The runs", "Settings", "What this table does not show",
    ]  # fmt: skip
    assert (
        "No map of learning rate and batch: no model of the table was trained at three learning rates" in page
    )


def test_every_figure_is_in_the_page_and_beside_it_with_a_caption_that_has_numbers(page, folder):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert (
        len(captions) == page.count('<img src="data:image/svg+xml;base64,') == len(FIGURES) - 2
    )  # all but the sweep and the tasks
    for i, caption in enumerate(captions, 1):
        assert f"<b>Figure {i}.</b>" in caption
        assert len(re.findall(r"\d", caption)) > 5
        (name,) = re.findall(r"<code>(figures/\w+\.png)</code>", caption)
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_no_network(page):
    fetched = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert all(target.startswith(("data:", "#")) for target in fetched)
    assert not re.search(r"<script|<link|<iframe|@import", page)


@pytest.mark.parametrize("method", ["isoflop", "parametric"])
def test_numbers_in_the_page_are_those_of_its_json(page, fits, method):
    fit, shown = fits[method], text_of(page)
    for name, value in fit["parameters"].items():
        low, high = fit["intervals_95"][name]
        assert f" {name} {value:.5g} {fit['standard_errors'][name]:.3g} {low:.5g} {high:.5g} ".replace(
            " ", ""
        ) in shown.replace(" ", "")
    assert f"Objective {fit['objective']:.6e}" in shown


def test_the_result_comes_first_with_its_interval_and_convention(page, fits):
    first, (low, high) = text_of(page)[:2500], fits["isoflop"]["a_interval_95"]
    assert f"grow as C^{fits['isoflop']['a']:.3f}".replace("^", "") in first
    assert f"{low:.3f} to {high:.3f}" in first
    assert "Convention 6nd_with_head: N counts all weights that a token is multiplied with" in first


def test_a_minimum_on_an_edge_is_flagged_in_the_table_in_the_caption_and_among_the_caveats(page, fits):
    (edge,) = (m for m in fits["isoflop"]["minima"] if m["on_edge"])
    assert edge["flops"] == pytest.approx(1e21)
    shown = text_of(page)
    assert "edge: minimum on the edge, at the largest size" in shown
    assert "1 of 5 minima lies on an edge (ringed, dashed)" in shown
    assert "▲ CAVEAT Minima on an edge 1 of 5 budgets (10²¹ FLOPs)" in re.sub(r" +", " ", shown)


def test_a_run_that_diverged_is_listed_with_its_reason_and_in_no_fit(page, fits):
    shown = text_of(page)
    assert "loss or gradient not finite at step 17" in shown
    assert "1 diverged" in shown
    finished = len(runs_of_a_grid()) - 2  # that one and the held-out one
    assert fits["isoflop"]["settings"]["runs"] == fits["parametric"]["settings"]["runs"] == finished


def test_a_held_out_run_is_compared_with_its_prediction(page, folder):
    entry, shown = json.loads((folder / "prediction.json").read_text())["held-out"], text_of(page)
    assert f"predicted to reach a loss of {entry['predicted']:.3f}" in shown
    assert f"measured {entry['measured']:.3f}" in shown
    assert "−1.00 %" in shown
    assert "10 times the FLOPs of the largest run fitted" in shown
    assert re.search(
        r"CAVEAT\s+Held-out run\s+held-out was predicted before its training.*outside of the interval", shown
    )


def test_a_measurement_inside_the_interval_holds(study):
    close = dataclasses.replace(study, predictions=prediction_of(measured=2.141, predicted=2.142))
    (check,) = (check for check in check_assumptions(close) if check.about == "Held-out run")
    assert check.verdict == "holds"


def test_the_effect_of_a_convention_is_refitted_and_shown(page, study):
    assert set(study.other_conventions) == {"6nd", "6nd_non_embedding"}
    moved = study.other_conventions["6nd_non_embedding"].parameters["a"]
    assert moved != pytest.approx(study.parametric.parameters["a"], abs=1e-3)
    assert f"{moved:.3f} (6nd_non_embedding)" in text_of(page)


@pytest.mark.parametrize(
    ("column", "value", "about"),
    [
        ("schedule", "constant", "Schedules"),
        ("warmup_steps", 400, "Warm-up"),
        ("epochs", 3.0, "Repeated text"),
    ],
)
def test_runs_that_are_not_what_a_law_assumes_are_a_caveat(study, column, value, about):
    assert about not in [check.about for check in check_assumptions(study) if check.verdict == "caveat"]
    table = study.table.assign(**{column: value})
    assert about in [
        check.about
        for check in check_assumptions(dataclasses.replace(study, table=table))
        if check.verdict == "caveat"
    ]


def test_seeds_that_differ_more_than_the_fit_assumes_are_a_caveat(study):
    again = study.table.assign(seed=1), study.runs.assign(loss=study.runs.loss + 0.05)
    both = dataclasses.replace(
        study,
        table=pd.concat([study.table, again[0]], ignore_index=True),
        runs=pd.concat([study.runs, again[1]], ignore_index=True),
    )
    (check,) = (check for check in check_assumptions(both) if check.about == "Noise between seeds")
    assert check.verdict == "caveat"


def test_a_floor_above_a_measured_loss_is_a_caveat(study):
    fit = study.parametric
    high = dataclasses.replace(
        fit, parameters={**fit.parameters, "E": float(fit.points["loss"].min()) + 0.01}
    )
    floors = [
        [
            c.verdict
            for c in check_assumptions(dataclasses.replace(study, fits={"parametric": f}))
            if c.about == "The law's floor"
        ]
        for f in (fit, high)
    ]
    assert floors == [[], ["caveat"]]


def test_training_curves_come_from_run_folders_that_were_moved_with_the_table(page):
    assert (
        "of 3 runs; dots are the losses that the fits use; 1 run that diverged or failed in red"
        in text_of(page)
    )


def sweep_of(folder: Path) -> Path:
    """A sweep: the best learning rate falls with the batch, and is the lowest one for the larger model."""
    rows = []
    for n in (1e6, 4e6):
        for batch in (16, 64):
            for rate in (1e-3, 3e-3, 1e-2, 3e-2):
                best = {1e6: 3e-3, 4e6: 1e-3}[n]
                loss = 3.0 + 0.1 * np.log(rate / best) ** 2 + 0.002 * batch
                rows.append(
                    {
                        "parameters": n,
                        "tokens": 1e8,
                        "batch_size": batch,
                        "sequence_length": 128,
                        "learning_rate": rate,
                        "eval_loss": loss,
                    }
                )
    table = pd.DataFrame(rows).assign(status="finished")
    table.loc[3, ["status", "eval_loss"]] = ["diverged", np.nan]
    table.to_csv(folder / SWEEP, index=False)
    return folder / SWEEP


def test_a_sweep_has_a_heat_map_and_no_fit(tmp_path, capsys):
    assert main([f"data={sweep_of(tmp_path)}", f"out={tmp_path / 'out'}"]) == 0
    shown = text_of((tmp_path / "out" / "report.html").read_text())
    assert "1M parameters, 100M tokens: best 3.032 at learning rate 0.003 with 2.05k tokens a batch" in shown
    assert "it is at the lowest learning rate and smallest batch: the optimum may be beyond" in shown
    assert "1 run lost (crosses)" in shown
    assert re.search(
        r"CAVEAT\s+Sweep's best run\s+With 4M parameters the best run is at the lowest learning rate", shown
    )
    assert (tmp_path / "out" / "figures" / "sweep.png").exists()
    assert not list((tmp_path / "out").glob("fit*.json"))


@pytest.mark.usefixtures("without_figures")
def test_names_and_reasons_are_text_whatever_is_in_them(tmp_path):
    name, reason = "<b>&\"'", "exit 1 <script>alert(1)</script>"
    table = pd.read_csv(sweep_of(tmp_path)).assign(name="run", reason=reason)
    table.loc[3, "name"] = table.loc[4, "name"] = name
    table.to_csv(tmp_path / "<i>.csv", index=False)
    (tmp_path / "prediction.json").write_text(
        json.dumps({name: prediction_of(2.0, 2.1)["held-out"]})
    )  # it is in a card and among the checks
    write_report(tmp_path / "<i>.csv", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<title>Scaling report: Scaling of &lt;i&gt;</title>" in page
    assert text_of(page).count(name) >= 4
    assert reason in text_of(page)
    assert not re.search(r"<b>&|<script|<i>", page)


def test_curves_with_their_minima_on_edges_are_shown_although_no_line_goes_through_them(tmp_path):
    rows = [
        (c, n, c / 6 / n, 3.0 + 1e-9 * n - 0.1 * np.log10(c))
        for c in (1e15, 1e16, 1e17)
        for n in (1e6, 2e6, 4e6)
    ]
    pd.DataFrame(rows, columns=["flops", "parameters", "tokens", "loss"]).to_csv(
        tmp_path / "edges.csv", index=False
    )
    with pytest.raises(UserError, match="0 of 3 budgets have a minimum inside"):
        write_report(tmp_path / "edges.csv", tmp_path / "out", method="isoflop")
    assert not (tmp_path / "out").exists()
    write_report(tmp_path / "edges.csv", tmp_path / "out", method="isoflop", strict=False)
    shown = text_of((tmp_path / "out" / "report.html").read_text())
    assert "3 of 3 minima lie on an edge (ringed, dashed)" in shown
    assert "has no fit: flops: 0 of 3 budgets have a minimum inside" in shown
    assert not (
        tmp_path / "out" / "fit.json"
    ).exists()  # which would be of another method than the one asked for


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (
            {"parameters": [1e6, 2e6], "tokens": [1e8, 1e8]},
            "has no column of this name. Add columns.loss=NAME",
        ),
        (
            {"parameters": [1e6, 2e6], "tokens": [1e8, 1e8], "loss": [3.0, 2.9]},
            "nothing to report: isoflop: ",
        ),
        (
            {"parameters": [1e6, "big"], "tokens": [1e8, 1e8], "loss": [3.0, 2.9]},
            "something else than numbers",
        ),
    ],
)
def test_a_table_without_what_a_report_needs_is_one_line_and_exit_2(tmp_path, capsys, columns, line):
    pd.DataFrame(columns).to_csv(tmp_path / "table.csv", index=False)
    assert main([f"data={tmp_path / 'table.csv'}", f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert line in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["out=here"], "data=TABLE.csv is missing"),
        (["data=runs.csv"], "out=FOLDER is missing"),
        (["data=runs.csv", "out=here", "method=isoflops"], "did you mean 'isoflop'?"),
        (["data=runs.csv", "out=here", "bootstrap=100"], "give method=NAME with it"),
    ],
)
def test_a_key_that_is_wrong_or_missing_is_one_line_and_exit_2(arguments, line, capsys):
    assert main(arguments) == 2
    assert line in capsys.readouterr().err


def test_the_users_own_style_of_figures_is_left_alone(folder):
    assert mpl.rcParams["axes.grid"] == mpl.rcParamsDefault["axes.grid"]


@pytest.mark.usefixtures("without_figures")
def test_a_fit_that_is_there_is_reported_as_it_is(folder, tmp_path):
    table = pd.read_csv(folder / "runs.csv")
    used = table[(table.status == "finished") & ~table.held_out]
    fit = isoflop(
        used.flops_budget, used.parameters_with_head, used.eval_loss, curve="parabola", bootstrap=50
    )
    write_report(folder / "runs.csv", tmp_path, fit=fit, notes=["as we like it"])
    written = json.loads((tmp_path / "fit.json").read_text())
    assert written["settings"]["curve"] == "parabola"
    assert written["data_notes"][0] == "as we like it"
    assert "as we like it." in text_of((tmp_path / "report.html").read_text())


def test_a_law_of_another_kind_has_its_numbers_and_its_extrapolation_test_in_the_page(tmp_path):
    made_runs(noise=0.001, budgets=5, sizes=5).to_csv(tmp_path / "table.csv", index=False)
    assert (
        fit_command([f"data={tmp_path / 'table.csv'}", "method=compute", "bootstrap=50", f"out={tmp_path}"])
        == 0
    )
    shown, fit = (
        text_of((tmp_path / "report.html").read_text()),
        json.loads((tmp_path / "fit.json").read_text()),
    )
    assert f"gamma{fit['parameters']['gamma']:.5g}" in shown.replace(" ", "")
    assert "largest compute left out and predicted" in shown
    assert "No contours of loss: no law of N and D was fitted" in shown


def test_training_curves_are_shown_with_their_envelope_and_the_sizes_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "FIGURES", ())
    sizes = np.geomspace(2e7, 5e9, 12)
    rows = [
        (f"run {i}", n, d, 6 * n * d, TRUTH.loss(n, d))
        for i, n in enumerate(sizes)
        for d in np.geomspace(0.5, 800, 60) * n
    ]
    pd.DataFrame(rows, columns=["run", "parameters", "tokens", "flops", "loss"]).to_csv(
        tmp_path / "curves.csv", index=False
    )
    assert (
        main(
            [
                f"data={tmp_path / 'curves.csv'}",
                f"out={tmp_path}",
                "method=envelope",
                "bootstrap=50",
                "computes=300",
            ]
        )
        == 0
    )
    page, fit = (tmp_path / "report.html").read_text(), json.loads((tmp_path / "fit.json").read_text())
    shown, frontier = text_of(page), pd.DataFrame(fit["frontier"])
    inside = frontier[frontier.used]
    assert "<h2>Training curves and their envelope</h2>" in page
    assert "12 training curves of 12 sizes, 20M to 5G parameters" in shown
    assert f"{len(rows)} points of 12 training curves" in shown  # and not so many runs
    assert f"{len(rows)} run" not in shown
    assert f"from {inside.loss.iloc[0]:.3f} at " in shown
    assert (
        f"{inside.parameters.nunique()} sizes from {short(inside.parameters.min())} to "
        f"{short(inside.parameters.max())} are best" in shown
    )
    assert f"N* ∝ C{fit['a']:.3f}" in shown
    assert f"{100 * (1 - frontier.used.mean()):.0f} % have the smallest or the largest size" in shown
    assert (tmp_path / "figures" / "envelope.png").read_bytes().startswith(b"\x89PNG")
    assert "points" not in fit  # the curves are the table's


def test_repeated_runs_are_shown_beside_what_new_tokens_would_give(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "FIGURES", ())
    pd.DataFrame(repeated_runs(1e-3)).to_csv(tmp_path / "repeated.csv", index=False)
    assert (
        main(
            [
                f"data={tmp_path / 'repeated.csv'}",
                f"out={tmp_path}",
                "method=repetition",
                "base=muennighoff",
                "bootstrap=50",
            ]
        )
        == 0
    )
    page, fit = (tmp_path / "report.html").read_text(), json.loads((tmp_path / "fit.json").read_text())
    shown, (law, _, _) = text_of(page), published_repetition()
    constants = fit["parameters"]["R_D"], fit["parameters"]["R_N"]
    repeated, new = (
        float(repeated_loss(law, 2e6, 50 * 3e8, unique, *constants)) for unique in (3e8, 50 * 3e8)
    )
    assert "<h2>Loss against epochs</h2>" in page
    assert (
        "that repeat tokens, 100 of them drawn" in shown
    )  # five sizes of eight, on four texts, at five numbers of epochs
    assert (
        f"After 50 epochs of 300M tokens a model of 2M parameters has a loss of {repeated:.3f} by the law"
        in shown
    )
    assert f"it would have {new:.3f}, so repeating costs {repeated - new:.3f} nats" in shown
    assert (tmp_path / "figures" / "repetition.png").read_bytes().startswith(b"\x89PNG")


def test_epoch_points_make_a_report_by_the_command_of_the_fit(published, tmp_path, capsys):
    data = published / "chinchilla_epoch" / "svg_extracted_data.csv"
    arguments = [
        f"data={data}",
        "columns.parameters=Model Size",
        "columns.flops=Training FLOP",
        "columns.loss=loss",
        "method=parametric",
    ]
    assert fit_command([*arguments, "drop_highest_losses=5", "bootstrap=100", f"out={tmp_path}"]) == 0
    assert "report.html" in capsys.readouterr().out
    shown, fit = (
        text_of((tmp_path / "report.html").read_text()),
        json.loads((tmp_path / "fit.json").read_text()),
    )
    assert f"beta{fit['parameters']['beta']:.5g}" in shown.replace(" ", "")
    assert "they are no IsoFLOP budgets" in shown
    assert re.search(r"β goes from 0\.453 with 0 losses dropped to 0\.33[89] with 15", shown)
    assert "N and C are as the table gives them" in shown
    assert "5 runs of highest loss, left out of the fit" in shown


def test_a_sweep_over_ranks_names_the_best_learning_rate_of_each(tmp_path):
    from llm_jax.scaling.report.figures.runs import best_of_each_rank, sweeps
    from llm_jax.scaling.report.study import numeric_runs

    rows = [
        {"parameters": 1e6, "tokens": 1e6, "batch_size": 16, "learning_rate": rate, "adapter_rank": rank,
         "eval_loss": 2.0 + 0.1 / (1 + rank) + abs(np.log10(rate / (1e-2 if rank else 1e-3)))}
        for rank in (0, 4, 16)
        for rate in (1e-3, 1e-2, 1e-1)
    ]  # fmt: skip
    table = pd.DataFrame(rows).assign(status="finished")
    (sweep,) = sweeps(
        table, numeric_runs(table, {name: name for name in ("parameters", "tokens")} | {"loss": "eval_loss"})
    )
    assert sweep.of_ranks
    assert sweep.batches.tolist() == [0, 4, 16]
    found = best_of_each_rank(sweep)
    assert found == " (all weights trained 2.100 at 0.001, rank 4 2.020 at 0.01, rank 16 2.006 at 0.01)"
    assert sweep.edges == []
