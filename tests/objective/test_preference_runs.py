"""Preferences as a user starts them: from a model with a chat template, on records of answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.files import read_json_lines
from tests.data.test_chat import folder, tokenizer  # noqa: F401  (fixtures)
from tests.tiny_run import documents, launch, write_experiment

FSDP_TENSOR = ("layout=fsdp_tensor", "mesh.data=4", "mesh.tensor=2")


@pytest.fixture(scope="module")
def base(folder, tmp_path_factory) -> Path:  # noqa: F811
    """A run of one step with the tokenizer of a chat model, and records of answers."""
    path = tmp_path_factory.mktemp("base")
    start = [f"experiment={write_experiment(path)}", f"tokenizer.file={folder}", "train.steps=1"]
    assert launch(*start, f"run_dir={path / 'run'}") == 0
    pairs, answers = [], []
    for i, text in enumerate(documents(90)):
        prompt, good, bad = text[:15], text[15 : 20 + i % 20], f"no {i} " * (1 + i % 3)
        pairs.append({"prompt": prompt, "chosen": good, "rejected": bad})
        answers.append({"prompt": prompt, "completion": bad if i % 2 else good, "label": i % 2 == 0})
    pairs[3]["chosen"] = "much too long " * 40
    write(path / "pairs.jsonl", pairs)
    write(path / "answers.jsonl", answers)
    return path


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def run(base, tmp_path):
    def train(name: str, experiment: str, *arguments: str, code: int = 0) -> list[dict]:
        data = "answers" if experiment == "kto" else "pairs"
        sizes = [
            "train.steps=4",
            "train.batch_size=8",
            "train.sequence_length=128",
            "optimizer.learning_rate=1e-2",
        ]
        line = [
            f"from={base / 'run'}",
            f"data.source={base / data}.jsonl",
            "evaluate.every=2",
            "checkpoint.every=2",
        ]
        assert (
            launch(f"experiment={experiment}", *line, f"run_dir={tmp_path / name}", *sizes, *arguments)
            == code
        )
        return read_json_lines(tmp_path / name / "metrics.jsonl") if code == 0 else []

    return train


def values(metrics: list[dict], name: str) -> np.ndarray:
    return np.array([line[name] for line in metrics if name in line])


def test_dpo_starts_at_log_2_and_agrees_with_one_device(run, capsys):
    one = run("one", "dpo", "layout=single")
    out = capsys.readouterr().out
    assert (
        "of 90 examples are left out: longer than a row (train.sequence_length); the first is pairs.jsonl:4"
        in out
    )
    assert values(one, "train_loss")[0] == pytest.approx(np.log(2), abs=1e-6)
    assert values(one, "margin")[0] == pytest.approx(0, abs=1e-6)
    assert values(one, "train_loss")[-1] < 0.69
    assert values(one, "accuracy")[-1] > 0.8
    assert set(one[-1]) >= {
        "eval_loss",
        "eval_accuracy",
        "eval_margin",
        "eval_chosen_logp",
        "eval_rejected_logp",
    }
    many = run("many", "dpo", *FSDP_TENSOR, "train.microbatches=2")
    assert "log-probabilities of the data (cached)" in capsys.readouterr().out
    live = run("live", "dpo", "layout=single", "objective.cache=false")
    for other in (many, live):
        for name in ("train_loss", "eval_loss", "chosen_logp", "eval_margin"):
            np.testing.assert_allclose(values(other, name), values(one, name), rtol=1e-5, atol=1e-6)
