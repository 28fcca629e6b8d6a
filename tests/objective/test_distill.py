"""Distillation as a user starts it: from a teacher of another shape, or from a file of its likeliest
tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.array_file import read_arrays
from llm_jax.core.files import read_json_lines
from llm_jax.run.save_teacher import main as save_teacher
from tests.tiny_run import documents, launch, write_experiment, write_jsonl

VOCAB = 320
DISTILL = ("objective=distill", "objective.beta=0.5", "objective.temperature=1.5", "objective.hard=0.25")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With the experiment `tiny.py`, its corpus, and a teacher of another width and depth."""
    path = tmp_path_factory.mktemp("distill")
    experiment = write_experiment(path)
    shape = (
        "model.layers=3",
        "model.embed=40",
        "model.heads=4",
        "train.steps=30",
        "optimizer.learning_rate=2e-2",
        "checkpoint.every=30",
    )
    assert launch(f"experiment={experiment}", *shape, f"run_dir={path / 'teacher'}") == 0
    return path


def words_in(folder: Path) -> tuple[str, ...]:
    return (f"experiment={folder / 'tiny.py'}", *DISTILL, "optimizer.learning_rate=2e-2")


@pytest.fixture
def words(folder) -> tuple[str, ...]:
    return words_in(folder)


@pytest.fixture
def run(words, tmp_path, monkeypatch):
    """Trains in a folder of that name; its metrics."""
    from llm_jax.run import run

    monkeypatch.setattr(run, "device_peak", lambda mesh, dtype, processes=1: 1e11)

    def train(name: str, *arguments: str, code: int = 0) -> list[dict]:
        assert launch(*words, "train.steps=6", f"run_dir={tmp_path / name}", *arguments) == code
        return read_json_lines(tmp_path / name / "metrics.jsonl") if code == 0 else []

    return train


def values(metrics: list[dict], name: str) -> np.ndarray:
    return np.array([line[name] for line in metrics if name in line])


@pytest.fixture(scope="module")
def few(folder) -> Path:
    """A file of four tokens a position."""
    file = folder / "few.teacher"
    assert (
        save_teacher(
            [f"out={file}", "k=4", "train.steps=8", *words_in(folder), f"teacher={folder / 'teacher'}"]
        )
        == 0
    )
    return file


def test_a_student_learns_on_any_layout_and_from_a_file(run, words, folder, few, tmp_path, capsys):
    teacher = f"teacher={folder / 'teacher'}"
    one = run("one", teacher)
    assert values(one, "divergence")[-1] < values(one, "divergence")[0] / 2
    assert "held-out loss" in (out := capsys.readouterr().out)
    assert "divergence" in out
    many = run("many", teacher, "layout=fsdp_tensor", "mesh.data=4", "mesh.tensor=2", "train.microbatches=2")
    for name in ("train_loss", "divergence", "cross_entropy", "eval_loss", "eval_divergence"):
        np.testing.assert_allclose(values(many, name), values(one, name), rtol=1e-5, err_msg=name)

    file = tmp_path / "large.teacher"
    assert save_teacher([f"out={file}", f"k={VOCAB - 1}", "train.steps=8", *words, teacher]) == 0
    tokenizer = f"tokenizer.file={folder / 'teacher' / 'tokenizer'}"
    offline = run("offline", f"objective.teacher_file={file}", tokenizer)
    for name in ("train_loss", "divergence", "eval_loss", "eval_divergence"):  # the bucket holds one token
        np.testing.assert_allclose(values(offline, name), values(one, name), rtol=1e-5, err_msg=name)
    info = json.loads((tmp_path / "offline" / "checkpoints" / "6" / "info" / "metadata").read_text())
    assert info["frozen"]["teacher_file"]["path"] == str(file)

    about, arrays = read_arrays(few)
    assert len(about["teacher_sha256"]) == 64
    np.testing.assert_allclose(np.exp(arrays["logp"]).sum(-1), 1, atol=1e-5)

    capsys.readouterr()
    shutil.copy(few, file)  # another file under the name
    run("offline", f"objective.teacher_file={file}", tokenizer, "train.steps=7", code=2)
    assert "its content is not what this run was trained beside" in capsys.readouterr().err


LAYOUTS = [
    ("context_ring", (), 1),
    ("data_parallel", ("mesh.data=2",), 4),
    ("expert", (), 1),
    ("fsdp_tensor_sequence", (), 1),
    ("hybrid_fsdp", (), 1),
    ("pipeline", ("mesh.stage=1", "mesh.data=8"), 1),
    ("tensor", ("mesh.tensor=4",), 2),
    ("zero1", (), 1),
]
"""Layout, mesh, microbatches."""


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "mesh", "microbatches"), LAYOUTS)
def test_every_layout_takes_the_steps_of_one_device(run, folder, few, layout, mesh, microbatches):
    for teacher in (
        (f"teacher={folder / 'teacher'}",),
        (f"objective.teacher_file={few}", f"tokenizer.file={folder / 'teacher' / 'tokenizer'}"),
    ):
        one = run(f"one{len(teacher)}", *teacher, "train.steps=2")
        many = run(
            f"many{len(teacher)}", *teacher, f"layout={layout}", *mesh, f"train.microbatches={microbatches}",
            "train.steps=2",
        )  # fmt: skip
        for name in ("train_loss", "divergence", "gradient_norm", "eval_divergence"):
            np.testing.assert_allclose(values(many, name), values(one, name), rtol=1e-5, err_msg=name)


def test_what_a_file_was_not_made_for_is_refused_in_one_line(run, folder, few, tmp_path, capsys):
    teacher = folder / "teacher"
    write_jsonl(tmp_path / "other.jsonl", documents(300))
    other = tmp_path / "cut.teacher"
    other.write_bytes(few.read_bytes()[:-1])
    tokenizer = f"tokenizer.file={teacher / 'tokenizer'}"
    for mistake, message in (
        ((f"data.source={tmp_path / 'other.jsonl'}",), "was made with other data, or another template"),
        (("train.seed=5",), "was made with train.seed=0, and this run's is 5"),
        (("train.steps=9",), "has the first 64 rows of the data, and train.steps=9 needs 72"),
        (("objective.temperature=2",), "holds log-probabilities at the temperature 1.5"),
        ((f"objective.teacher_file={other}",), "is shorter than its header says"),
        ((f"objective.teacher_file={folder / 'tiny.py'}",), "is no file of arrays that llm_jax wrote"),
        ((f"teacher={teacher}",), "takes the place of teacher="),
    ):
        capsys.readouterr()
        run("wrong", f"objective.teacher_file={few}", tokenizer, *mistake, code=2)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "teacher= is missing: the model to learn from. Add teacher=RUN_OR_FOLDER"),
        (("teacher=nowhere",), "objective.teacher=nowhere: no such folder"),
        (
            ("teacher={teacher}", "tokenizer.vocab=330"),
            "has a vocabulary of 320 tokens, and the trained model",
        ),
        (("teacher={teacher}", "tokenizer.sample_bytes=9000"), "has another tokenizer than the run"),
        (("teacher={teacher}", "objective.beta=1.5"), "objective.beta=1.5: must be from 0 (forward KL)"),
        (("teacher={teacher}", "objective.temperature=0"), "objective.temperature=0.0: must be from 0.01"),
        (("teacher={teacher}", "objective=next_token"), "there is no key 'objective.beta'"),
    ],
)
def test_a_mistake_is_one_line(run, folder, tmp_path, capsys, arguments, message):
    run("wrong", *(argument.format(teacher=folder / "teacher") for argument in arguments), code=2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "wrong").exists()
