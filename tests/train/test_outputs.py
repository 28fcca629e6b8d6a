"""What a run leaves for people and programs to read."""

from __future__ import annotations

import json
import math

import pytest

from llm_jax.core.files import drop_torn_line, read_json_lines, write_json
from llm_jax.train.metrics import MetricsWriter, latest_values
from tests.tiny_run import launch, summary

SUMMARY_KEYS = (
    "experiment", "step", "parameters", "parameters_non_embedding", "tokens", "train_flops", "train_loss", "eval_loss", "eval_bits_per_byte",
    "tokens_per_second", "mfu", "peak_flops_per_second", "wall_seconds", "devices", "mesh",
)  # fmt: skip


@pytest.fixture
def run_dir(tiny, tmp_path, capsys):
    """A run of 6 steps in two starts."""
    folder = tmp_path / "run"
    for steps in (4, 6):
        assert (
            launch(
                f"experiment={tiny}",
                f"run_dir={folder}",
                f"train.steps={steps}",
                "sample.tokens=3",
                'sample.prompts=["", "the"]',
            )
            == 0
        )
    return folder


def test_run_folder_has_all_that_is_promised(run_dir, capsys):
    out = capsys.readouterr().out
    found = summary(run_dir)
    assert set(SUMMARY_KEYS) <= set(found)
    assert (found["step"], found["tokens"], found["devices"], found["mesh"]) == (6, 6 * 256, 1, "data=1")
    assert found["train_flops"] / found["tokens"] > 6 * found["parameters_non_embedding"]
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "tokenizer/tokenizer.model",
        "checkpoints",
        "tensorboard",
        "log.txt",
        "samples.txt",
        "loss.png",
    ):
        assert (run_dir / name).exists(), name
    assert (run_dir / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "--- sample 2, prompt 'the'\nthe" in (run_dir / "samples.txt").read_text()
    log = (run_dir / "log.txt").read_text()
    for line in ("model       2 layers", "layout      single on mesh data=1", "batch       8 sequences of "
    "32 = 256 tokens", "FLOPs",
                 "resuming at step 4", "step 6/6  loss", "tokens/s", "MFU", "ETA", "held-out loss", "finished 6 steps"):  # fmt: skip
        assert line in out, line
        assert line in log, line


def test_every_line_of_metrics_is_complete(run_dir):
    lines = [line for line in read_json_lines(run_dir / "metrics.jsonl") if "train_loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert {
            "train_loss",
            "gradient_norm",
            "update_norm",
            "learning_rate",
            "tokens",
            "step_seconds",
            "data_seconds",
            "bad_steps",
            "batch_sha",
        } <= set(line)
        assert line["tokens"] == line["step"] * 256
        assert len(line["batch_sha"]) == 64
    assert any("mfu" in line and "tokens_per_second" in line for line in lines)


def test_tensorboard_reads_the_same_values(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    lines = read_json_lines(run_dir / "metrics.jsonl")
    for name in ("train_loss", "learning_rate", "gradient_norm", "eval_loss"):
        written = [(line["step"], line[name]) for line in lines if name in line]
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in read] == [step for step, _ in written]
        assert [v for _, v in read] == pytest.approx(
            [v for _, v in written], rel=1e-6
        )  # event files hold float32


def test_progress_lines_come_by_the_clock_where_there_is_no_terminal(tiny, tmp_path, capsys):
    arguments = (f"experiment={tiny}", "train.steps=3", "evaluate.every=0")
    assert launch(*arguments, f"run_dir={tmp_path / 'a'}", "train.progress_every=0") == 0
    out = capsys.readouterr().out
    assert [f"step {n}/3  loss" in out for n in (1, 2, 3)] == [True] * 3
    assert launch(*arguments, f"run_dir={tmp_path / 'b'}", "train.progress_every=1000") == 0
    out = capsys.readouterr().out
    assert [f"step {n}/3  loss" in out for n in (1, 2, 3)] == [False, False, True]


def test_torn_last_line_is_not_read_and_is_cut_off_by_the_next_writer(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 2}\n{"step": 2, "a": 3}\n{"step": 3, "a')
    assert [line["step"] for line in read_json_lines(path)] == [1, 2]
    assert latest_values(path, 1) == {"step": 1, "a": 2}
    writer = MetricsWriter(tmp_path)
    writer.write({"step": 3, "a": math.nan})
    writer.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "a": 2},
        {"step": 2, "a": 3},
        {"step": 3, "a": None},
    ]
    assert not drop_torn_line(path)
    path.write_text('{"step"')
    assert drop_torn_line(path)
    assert path.read_text() == ""


def test_json_is_never_invalid(tmp_path):
    write_json(tmp_path / "a.json", {"a": math.inf, "b": 1.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": 1.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": [math.nan]})
    assert json.loads((tmp_path / "a.json").read_text())["b"] == 1.5
