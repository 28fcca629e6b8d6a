"""What fine-tuning changes is measured at its start and its end: held-out prompts that are answered right, and the loss
on the texts that the model was first trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llm_jax.core.files import read_json, read_json_lines
from llm_jax.evaluate.__main__ import main as evaluate
from llm_jax.evaluate.held_out import score
from tests.data.test_chat import folder  # noqa: F401  (a fixture)
from tests.objective.test_sft import base  # noqa: F401  (a fixture)
from tests.tiny_run import launch

SIZES = ("layout=single", "train.batch_size=8", "train.sequence_length=64", "evaluate.base_batches=2")
LEARN = (
    "optimizer.learning_rate=1e-2",
    "optimizer.schedule=constant",
    "sample.tokens=6",
    "sample.held_out=20",
)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> tuple[Path, list[str], str]:  # noqa: F811
    """A run that learned to answer "b" to everything; its command line, and its log."""
    path = tmp_path_factory.mktemp("answers")
    records = [
        {"prompt": f"what is {i}", "completion": "b", "verify": "exact", "task": "b"} for i in range(200)
    ]
    records[::2] = [{"prompt": f"which is {i}", "completion": "b"} for i in range(100)]
    (path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    line = ["experiment=sft", f"from={base / 'run'}", f"data.source={path / 'records.jsonl'}", *SIZES, *LEARN]
    assert launch(*line, "data.held_out_fraction=0.2", f"run_dir={path / 'run'}", "train.steps=12") == 0
    return path, line, (path / "run" / "log.txt").read_text()


def test_answers_to_held_out_prompts_are_verified(trained):
    path, _, log = trained
    summary = read_json(path / "run" / "summary.json")
    assert summary["exact_answers_before"] == 0
    assert summary["exact_answers"] == 1
    count = summary["exact_answers_of"]
    assert 3 <= count < 20  # of the first 20 held-out records those with a verifier
    assert (
        f"exact answers, of {count} held-out prompts: 0.0% before, 100.0% after (b {count} of {count})" in log
    )
    assert "--- sample 1, records.jsonl:" in log
    assert log.count("--- sample") == 3
    samples = (path / "run" / "samples.txt").read_text()
    assert samples.count(", right\nuser: what is ") == count
    assert "\nassistant: b\n" in samples


def test_what_is_forgotten_is_the_loss_on_the_texts_of_the_first_model(trained, base, capsys):  # noqa: F811
    path, _, log = trained
    summary = read_json(path / "run" / "summary.json")
    sizes = [("train.batch_size", "8"), ("train.sequence_length", "64")]
    before = score(base / "run", sizes, batches=2).eval_loss
    assert summary["base_loss_before"] == pytest.approx(before, rel=1e-6)
    assert summary["base_loss"] > before
    assert f"the base was trained on: {before:.4f} before, {summary['base_loss']:.4f} after" in log


def test_a_resumed_run_knows_what_was_before(trained, tmp_path):
    path, line, _ = trained
    shutil.copytree(path / "run", tmp_path / "run")
    more = ["data.held_out_fraction=0.2", f"run_dir={tmp_path / 'run'}", "train.steps=13"]
    assert launch(*line, *more) == 0
    before, after = (read_json(at / "run" / "summary.json") for at in (path, tmp_path))
    assert after["base_loss_before"] == before["base_loss_before"]
    assert after["base_loss"] != before["base_loss"]


def test_the_texts_are_found_behind_several_runs_or_said_to_be_unknown(trained, tmp_path, capsys):
    path, line, _ = trained
    line = [f"from={path / 'run'}" if word.startswith("from=") else word for word in line]
    more = ["data.held_out_fraction=0.2", "train.steps=1", "sample.prompts=[hello]", "sample.held_out=0"]
    assert launch(*line, *more, f"run_dir={tmp_path / 'second'}") == 0
    log = (tmp_path / "second" / "log.txt").read_text()
    assert "held-out loss of the corpus that the base was trained on: " in log
    assert (tmp_path / "second" / "samples.txt").read_text() == "--- sample 1\nuser: hello\nassistant: b\n"
    config = (path / "run" / "config.yaml").read_text()
    shutil.copytree(path / "run", tmp_path / "other")
    gone = tmp_path / "gone"
    (tmp_path / "other" / "config.yaml").write_text(
        "\n".join(f"  start_from: {gone}" if "start_from" in text else text for text in config.splitlines())
    )
    line = [f"from={tmp_path / 'other'}" if word.startswith("from=") else word for word in line]
    assert launch(*line, *more, f"run_dir={tmp_path / 'third'}") == 0
    assert f"what the model forgets is not measured: {gone} is no folder of a run" in capsys.readouterr().out


def test_the_evaluate_command_scores_conversations_and_verifies_answers(trained, tmp_path, capsys):
    path, *_ = trained
    summary = read_json(path / "run" / "summary.json")
    assert evaluate([str(path / "run"), f"out={tmp_path / 'loss.json'}"]) == 0
    assert read_json(tmp_path / "loss.json")["eval_loss"] == pytest.approx(summary["eval_loss"], rel=1e-5)
    assert evaluate([str(path / "run"), "answers=20", f"out={tmp_path / 'answers.json'}"]) == 0
    found = read_json(tmp_path / "answers.json")
    count = summary["exact_answers_of"]
    assert found["exact_answers"]["b"] == found["exact_answers"]["all"]
    assert found["exact_answers"]["all"]["right"] == found["exact_answers"]["all"]["of"] == count
    assert len(found["answers"]) == 20
    assert f"{count} of {count}" in capsys.readouterr().out
    assert evaluate([str(path / "run"), "answers=20", "batches=2"]) == 2
    assert evaluate([str(path / "run"), "data.source=stdlib", "answers=20"]) == 2
    error = capsys.readouterr().err
    assert "answers=20: has no tokens or batches to limit" in error
    assert "data.source=stdlib: this objective reads records, not texts" in error


def test_pairs_are_made_of_wrong_answers(trained, base, tmp_path, capsys):  # noqa: F811
    """Of a model that is always wrong; one that is always right makes none."""
    path, *_ = trained
    text = (path / "records.jsonl").read_text().replace('"completion": "b"', '"completion": "c"')
    (tmp_path / "other.jsonl").write_text(text)
    line = [f"data.source={tmp_path / 'other.jsonl'}", "answers=30", "data.held_out_fraction=0.9"]
    more = ["samples=2", "temperature=0.01", f"pairs={tmp_path / 'pairs.jsonl'}"]
    assert evaluate([str(path / "run"), *line, *more]) == 0
    pairs = read_json_lines(tmp_path / "pairs.jsonl")
    assert 5 <= len(pairs) < 30  # every other record has a verifier
    assert f"{len(pairs):,} have a wrong answer" in capsys.readouterr().out
    for pair in pairs:
        assert (pair["chosen"], pair["rejected"], pair["task"]) == ("c", "b", "b")
        assert pair["prompt"][0]["content"].startswith("what is")
    line[0] = f"data.source={path / 'records.jsonl'}"
    cold = ["samples=1", "temperature=0.01", f"pairs={tmp_path / 'none.jsonl'}"]
    assert evaluate([str(path / "run"), *line, *cold]) == 2
    assert "none.jsonl: no sample is wrong" in capsys.readouterr().err
    for wrong in (["pairs=a.jsonl"], ["answers=3", "samples=2"], ["answers=3", "pairs=a.txt"]):
        assert evaluate([str(path / "run"), *wrong]) == 2
