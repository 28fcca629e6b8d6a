"""Objectives that are one file outside the package: they train under a layout as on one device, resume, and
keep frozen models frozen.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.files import read_json_lines
from tests.tiny_run import checkpoint, documents, launch, steps_saved, write_jsonl

HERE = Path(__file__).parent
FSDP_TENSOR = ("layout=fsdp_tensor", "mesh.data=4", "mesh.tensor=2")


@pytest.fixture
def run(tiny, tmp_path):
    """Trains a toy with arguments, in a folder of that name; its metrics by step."""
    write_jsonl(tmp_path / "small.jsonl", documents(400))

    def train(toy: str, name: str, *arguments: str, code: int = 0) -> list[dict]:
        source = f"data.source={tmp_path / 'small.jsonl'}"
        assert launch(f"experiment={HERE / toy}.py", f"run_dir={tmp_path / name}", source, *arguments) == code
        return read_json_lines(tmp_path / name / "metrics.jsonl") if code == 0 else []

    return train


def values(metrics: list[dict], name: str) -> np.ndarray:
    return np.array([line[name] for line in metrics if name in line])


@pytest.mark.parametrize("microbatches", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_preference_objective_agrees_with_one_device(run, tmp_path, microbatches):
    one = run("toy_preference", "one")
    many = run("toy_preference", "many", *FSDP_TENSOR, f"train.microbatches={microbatches}")
    assert values(one, "train_loss")[0] == pytest.approx(
        0.7, abs=0.2
    )  # log 2 and the margins: the policy is the reference
    assert values(one, "train_loss")[-1] < values(one, "train_loss")[0]
    np.testing.assert_allclose(values(many, "train_loss"), values(one, "train_loss"), rtol=1e-5)
    np.testing.assert_allclose(values(many, "eval_loss"), values(one, "eval_loss"), rtol=1e-5)
    assert (values(many, "accuracy") == values(one, "accuracy")).all()
    assert next(line["tokens"] for line in one if "batch_sha" in line) == 2 * 8 * 32
    assert [line["batch_sha"] for line in one if "batch_sha" in line] == [
        line["batch_sha"] for line in many if "batch_sha" in line
    ]
    assert (
        json.loads((tmp_path / "one" / "summary.json").read_text())["eval_accuracy"]
        == values(one, "eval_accuracy")[-1]
    )


def test_a_distillation_objective_agrees_with_one_device_and_knows_its_teacher(run, tmp_path, capsys):
    teacher = tmp_path / "teacher"
    run(
        "toy_source",
        "teacher",
        "objective=next_token",
        "model.layers=3",
        "model.embed=40",
        "model.heads=4",
        "train.steps=4",
    )
    one = run("toy_distillation", "one", f"objective.teacher={teacher}")
    many = run("toy_distillation", "many", f"objective.teacher={teacher}", *FSDP_TENSOR)
    np.testing.assert_allclose(values(many, "train_loss"), values(one, "train_loss"), rtol=1e-5)
    info = json.loads((tmp_path / "one" / "checkpoints" / "8" / "info" / "metadata").read_text())
    assert info["frozen"]["teacher"]["path"] == str(teacher)
    assert len(info["frozen"]["teacher"]["sha256"]) == 64
    capsys.readouterr()
    run(
        "toy_source",
        "teacher",
        "objective=next_token",
        "model.layers=3",
        "model.embed=40",
        "model.heads=4",
        "train.steps=6",
    )
    run("toy_distillation", "one", f"objective.teacher={teacher}", "train.steps=10", code=2)
    assert (
        f"objective.teacher={teacher}: its weights are not those that this run was trained beside"
        in capsys.readouterr().err
    )


def test_a_source_that_reads_the_state_resumes_to_the_same_losses(run, tmp_path):
    whole = run("toy_source", "whole")
    run("toy_source", "cut", "train.steps=8", "checkpoint.every=3")
    for step in steps_saved(tmp_path / "cut"):
        if step > 3:
            import shutil

            shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step))
    (tmp_path / "cut" / "summary.json").unlink()
    resumed = run("toy_source", "cut", "checkpoint.every=3")
    by_step = {line["step"]: line["train_loss"] for line in resumed if "train_loss" in line}
    assert list(by_step.values()) == values(whole, "train_loss").tolist()
    plain = run("toy_source", "plain", "objective=next_token")
    assert (
        values(plain, "loss_weight").tolist() != values(whole, "loss_weight").tolist()
    )  # the state was read


def test_frozen_parameters_stay_as_they_started_and_are_in_no_checkpoint(run, tmp_path):
    from llm_jax.pretrained.model import open_model

    attention_only = 'train.trainable=["blocks.attention.*"]'
    one = run("toy_source", "one", "objective=next_token", attention_only)
    many = run("toy_source", "many", "objective=next_token", attention_only, *FSDP_TENSOR)
    np.testing.assert_allclose(values(many, "train_loss"), values(one, "train_loss"), rtol=1e-5)
    names = [name for name in checkpoint(tmp_path / "one", 8) if "blocks" in name or "embedding" in name]
    assert names
    assert all("attention" in name for name in names)
    run("toy_source", "start", "objective=next_token", "train.steps=1", "optimizer.learning_rate=1e-30")
    start, end = open_model(tmp_path / "start").parameters, open_model(tmp_path / "one").parameters
    np.testing.assert_array_equal(end["embedding"], start["embedding"])
    np.testing.assert_array_equal(end["blocks"]["mlp"]["up"], start["blocks"]["mlp"]["up"])
    assert (
        np.asarray(end["blocks"]["attention"]["query"]) != np.asarray(start["blocks"]["attention"]["query"])
    ).any()
    assert launch(f"experiment={HERE / 'toy_source'}.py", "train.trainable=[blocks.atention.query]", f"run_dir={tmp_path / 'x'}",
                  f"data.source={tmp_path / 'small.jsonl'}") == 2  # fmt: skip


def test_weights_of_tokens_come_from_the_data_to_the_loss(run, tmp_path):
    one = run("toy_completion", "one")
    cut = run("toy_completion", "cut", *FSDP_TENSOR, "train.microbatches=2")
    np.testing.assert_allclose(values(cut, "train_loss"), values(one, "train_loss"), rtol=1e-5)
    assert values(cut, "loss_weight").tolist() == values(one, "loss_weight").tolist()
    plain = run("toy_completion", "plain", "objective=next_token")
    assert values(one, "loss_weight").mean() < values(plain, "loss_weight").mean()


def test_a_run_of_an_objective_from_a_file_is_evaluated_and_opened_without_the_file(run, tmp_path, capsys):
    """Other commands read the run's config.yaml in a process that has never imported the objective."""
    import subprocess
    import sys

    run("toy_preference", "one", "train.steps=1")
    script = (
        "import sys; from llm_jax.evaluate.__main__ import main; code = main([sys.argv[1]]); "
        "from llm_jax.launch import main; line = ['experiment=' + sys.argv[1] + '/config.yaml', '--show']; "
        "codes = main(line), main([*line, 'objective.beta=0.1']); sys.exit(10 * code + sum(codes) // 2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "one")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "bits/byte" in done.stdout
    assert done.stderr.count("error: objective.name=toy_preference: no such objective") == 2
    assert "Traceback" not in done.stderr


def test_a_partly_trained_run_needs_the_weights_that_it_started_from(run, tmp_path, capsys):
    """Its checkpoints hold the trained parameters alone: with other weights for the rest it would be another model."""
    from llm_jax.core.errors import UserError
    from llm_jax.pretrained.model import open_model

    base = tmp_path / "base"
    run("toy_source", "base", "objective=next_token", "train.steps=1")
    part = (f"from={base}", 'train.trainable=["blocks.mlp.*"]', "objective=next_token")
    run("toy_source", "part", *part, "train.steps=2")
    whole = open_model(tmp_path / "part").parameters
    np.testing.assert_array_equal(whole["embedding"], open_model(base).parameters["embedding"])
    run("toy_source", "base", "objective=next_token", "train.steps=2")
    with pytest.raises(UserError, match=r"train.start_from=.*base: has other weights"):
        open_model(tmp_path / "part")
    capsys.readouterr()
    run("toy_source", "part", *part, "train.steps=3", code=2)
    assert "its weights are not those that this run was trained beside" in capsys.readouterr().err


def test_a_field_that_an_objective_got_later_counts_as_its_default(run, tmp_path, capsys):
    run("toy_preference", "one", "train.steps=1")
    config = tmp_path / "one" / "config.yaml"
    config.write_text(config.read_text().replace("  beta: 0.5\n", ""))
    run("toy_preference", "one", "train.steps=2")
    config.write_text(config.read_text().replace("  beta: 0.5\n", ""))
    capsys.readouterr()
    run("toy_preference", "one", "train.steps=3", "objective.beta=0.25", code=2)
    assert "objective.beta: 0.5 → 0.25" in capsys.readouterr().err


def test_a_plan_counts_what_the_objective_does(tmp_path, capsys, monkeypatch):
    """Tokens of both sequences, FLOPs of the reference's forward pass, its bytes; and new processes find the
    objective of a file."""
    from llm_jax.plan import search
    from llm_jax.plan.__main__ import main

    def planned(*arguments: str) -> dict:
        line = [f"experiment={HERE / 'toy_preference.py'}", "model.vocab=320", "devices=2", "hardware=h100",
                "compiler=cpu", f"json={tmp_path / 'plan.json'}", *arguments]  # fmt: skip
        assert main(line) == 0
        return json.loads((tmp_path / "plan.json").read_text())

    pairs = planned("layout=fsdp")
    plain = planned("layout=fsdp", "objective=next_token")
    assert pairs["tokens"] == 2 * plain["tokens"]
    assert pairs["model_flops"] == pytest.approx(2 * (1 + 1 / 3) * plain["model_flops"])
    assert pairs["memory_bytes"]["frozen"] == pairs["memory_bytes"]["parameters"]
    assert plain["memory_bytes"]["frozen"] == 0
    part = planned("layout=fsdp", "objective=next_token", "train.trainable=[blocks.mlp.*]")["memory_bytes"]
    assert part["frozen"] + part["parameters"] == plain["memory_bytes"]["parameters"]
    assert part["gradients"] == part["parameters"]

    monkeypatch.setattr(search, "PRESETS", {name: search.PRESETS[name] for name in ("fsdp", "data_parallel")})
    ranked = planned("layout=all")
    assert sorted(plan["layout"] for plan in ranked["plans"]) == ["data_parallel", "fsdp"], ranked
