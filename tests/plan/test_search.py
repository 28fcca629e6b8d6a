"""layout=all: every preset on every mesh is ranked, or left out with a reason."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from llm_jax.layout.hardware import hardware
from llm_jax.layout.layout import Layout
from llm_jax.layout.presets import PRESETS
from llm_jax.plan import search
from llm_jax.plan.__main__ import main
from llm_jax.run.initial_weights import experiment_from_pairs

H100 = hardware("h100")


@pytest.fixture
def experiment(small):
    return experiment_from_pairs([("experiment", str(small))])


def names(candidates: list[search.Candidate]) -> list[str]:
    return [candidate.name for candidate in candidates]


def test_every_preset_is_tried_on_every_factorisation(experiment, monkeypatch):
    monkeypatch.setattr(
        search, "PRESETS", {name: PRESETS[name] for name in ("fsdp", "tensor", "fsdp_tensor")}
    )
    tried, same = search.candidates(experiment, 8)
    assert names(tried) == [
        "fsdp (data 8)",
        "tensor (tensor 8)",
        "fsdp_tensor (data 2 x tensor 4)",
        "fsdp_tensor (data 4 x tensor 2)",
    ]
    assert same == 3  # fsdp_tensor 8 x 1 is fsdp, 1 x 8 is tensor, and the experiment's own is fsdp


def test_a_layout_of_the_experiments_own_is_tried_too(experiment):
    own = Layout("mine", mesh={"rows": -1}, compute={"batch": "rows"}, optimizer={"mlp": "rows"})
    assert "mine (rows 8)" in names(search.candidates(dataclasses.replace(experiment, layout=own), 8)[0])


def test_names_of_layouts_and_axes_do_not_matter():
    renamed = Layout("zero3", mesh={"workers": 8}, compute={"batch": "workers"}, stored={"embed": "workers"})
    assert search.canonical_form(search.Candidate(renamed, {"workers": 8})) == search.canonical_form(
        search.Candidate(PRESETS["fsdp"], {"data": 8})
    )
    for layout in (PRESETS["data_parallel"], dataclasses.replace(renamed, residual={"sequence": "workers"})):
        axis = next(iter(layout.mesh))
        assert search.canonical_form(search.Candidate(layout, {axis: 8})) != search.canonical_form(
            search.Candidate(PRESETS["fsdp"], {"data": 8})
        )


def test_axes_that_split_everything_together_are_one():
    mesh = {"a": 2, "b": 4}
    together = Layout("mine", mesh=mesh, compute={"batch": "a,b", "experts": "b"}, stored={"embed": "a,b"})
    fsdp = search.canonical_form(search.Candidate(PRESETS["fsdp"], {"data": 8}))
    assert (
        search.canonical_form(search.Candidate(together, mesh), {"batch", "embed", "latent"}) == fsdp
    )  # of a model without experts
    assert (
        search.canonical_form(search.Candidate(together, mesh), {"batch", "embed", "latent", "experts"})
        != fsdp
    )
    turned = dataclasses.replace(together, stored={"embed": "b,a"})
    assert search.canonical_form(search.Candidate(turned, mesh), {"batch", "embed", "latent"}) != fsdp


@pytest.mark.parametrize(
    ("layout", "mesh", "memory", "why"),
    [
        ("single", {"data": 8}, 10**9, "splits nothing over data"),
        ("tensor", {"tensor": 8}, 10**9, ""),
        ("tensor", {"tensor": 8}, 10**9, "model.heads=4: layout tensor"),
        (
            "data_parallel",
            {"data": 8},
            2 * 10**6,
            "does not fit: weights, gradients, moments and the stream that enters the layers need",
        ),
        ("fsdp", {"data": 8}, 2 * 10**6, ""),
    ],
)
def test_impossible_candidates_are_not_compiled(experiment, layout, mesh, memory, why):
    heads = 4 if "heads" in why else 8
    experiment = dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, heads=heads, kv_heads=heads, head_dim=8)
    )
    candidate = search.Candidate(dataclasses.replace(PRESETS[layout], mesh=mesh), mesh)
    gpu = dataclasses.replace(H100, memory_bytes=memory)
    found = search.reason_to_skip(candidate, experiment, gpu, jax.devices()[:8])
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_plans_are_ranked_and_the_others_are_listed(experiment, monkeypatch, tmp_path, capsys, small):
    monkeypatch.setattr(search, "PRESETS", {name: PRESETS[name] for name in ("single", "fsdp", "tensor")})
    monkeypatch.setattr(search.os, "cpu_count", lambda: 1)  # in this process
    path = tmp_path / "all.json"
    line = [f"experiment={small}", "devices=4", "hardware=h100", "compiler=cpu", "layout=all", f"json={path}"]
    assert main(line) == 0
    out, err = capsys.readouterr()
    ranking = json.loads(path.read_text())
    speeds = [plan["tokens_per_second_per_device"] for plan in ranking["plans"]]
    assert sorted(plan["layout"] for plan in ranking["plans"]) == ["fsdp", "tensor"]
    assert speeds == sorted(speeds, reverse=True)
    assert out.index(ranking["plans"][0]["layout"]) < out.index(ranking["plans"][1]["layout"])
    assert ranking["left_out"] == [
        {
            "layout": "single",
            "mesh": {"data": 4},
            "why": "splits nothing over data: its devices would all do the same",
        }
    ]
    assert "splits nothing over data" in out
    assert "2/2 tensor (tensor 4): " in err


def test_one_layout_that_fails_does_not_end_the_search(experiment, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr(search, "PRESETS", {"fsdp": PRESETS["fsdp"]})
    monkeypatch.setattr(search, "make_plan", broken)
    found = search.search(experiment, H100, 8, "cpu", lambda line: None, workers=1)
    assert [out.why for out in found.left_out] == ["failed to compile: ZeroDivisionError: no such thing"]


def test_keys_of_a_single_layout_are_refused(small, tmp_path, capsys):
    for more in (f"trace={tmp_path / 'trace.json'}", "mesh.tensor=2", "layout.compute.batch=data"):
        assert main([f"experiment={small}", "devices=8", "hardware=h100", "layout=all", more]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert more.split("=")[0] in error
