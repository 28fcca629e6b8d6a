"""SIGTERM and Ctrl-C in every phase of a run: it ends soon with everything saved, and resumes as an
uninterrupted run."""

from __future__ import annotations

import signal

import pytest

from llm_jax.core.files import read_json_lines
from llm_jax.run import run
from llm_jax.train import evaluation, loop
from llm_jax.train.metrics import MetricsWriter
from tests.tiny_run import launch, losses, steps_saved, summary


def evaluations(run_dir):
    return {
        line["step"]: line["eval_loss"]
        for line in read_json_lines(run_dir / "metrics.jsonl")
        if "eval_loss" in line
    }


@pytest.fixture
def whole(tiny, tmp_path):
    """A run without signals."""
    assert launch(f"experiment={tiny}", f"run_dir={tmp_path / 'whole'}", "sample.tokens=4") == 0
    return tmp_path / "whole"


def once(monkeypatch, owner, name, number, before=lambda *a: True):
    """Patches a function so that its first call for which `before` is true sends a signal to this process."""
    real, sent = getattr(owner, name), []

    def with_signal(*args, **kwargs):
        if not sent and before(*args):
            sent.append(number)
            signal.raise_signal(number)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, with_signal)


PHASES = {
    # phase: (the function to interrupt, steps whose checkpoint must exist afterwards)
    "preparing the corpus": (run.data, "prepare", lambda *a: True, None),
    "starting": (run, "header", lambda *a: True, None),
    "training": (MetricsWriter, "write", lambda self, values: values["step"] == 3, (3, 4)),
    "evaluating": (evaluation, "on_devices", lambda *a: True, (4,)),
    "saving": (run.Checkpoints, "save", lambda self, state, step, *a: step == 6, (6,)),
    "the last evaluation": (loop.Console, "log", lambda self, text: text.startswith("step 8/8"), (8,)),
    "sampling": (run, "write_samples", lambda *a: True, (8,)),
}


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        *((phase, signal.SIGTERM) for phase in PHASES),
        ("starting", signal.SIGINT),
        ("training", signal.SIGINT),
    ],
)
def test_a_stopped_run_resumes_as_an_uninterrupted_one(
    tiny, tmp_path, monkeypatch, capsys, whole, phase, number
):
    owner, name, before, saved = PHASES[phase]
    run_dir = tmp_path / "run"
    arguments = (f"experiment={tiny}", f"run_dir={run_dir}", "sample.tokens=4")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        once(patch, owner, name, number, before)
        assert launch(*arguments) == (130 if number == signal.SIGINT else 85)
    out = capsys.readouterr()
    assert out.err == ""
    if saved is None:
        assert f"stopped by {number.name} before a step was done" in out.out
        assert not (run_dir / "checkpoints").exists() or not steps_saved(run_dir)
    else:
        assert "checkpoint saved; run the same command again to resume" in out.out
        assert max(steps_saved(run_dir)) in saved
        assert summary(run_dir)["state"] == "stopped"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers

    assert launch(*arguments) == 0
    assert losses(run_dir) == losses(whole)
    assert evaluations(run_dir) == evaluations(whole)
    assert (run_dir / "samples.txt").read_text() == (whole / "samples.txt").read_text()
    assert {k: summary(run_dir)[k] for k in ("state", "step", "train_loss", "eval_loss")} == {
        k: summary(whole)[k] for k in ("state", "step", "train_loss", "eval_loss")
    }


def test_a_second_signal_ends_at_once(tiny, tmp_path, monkeypatch):
    def twice(self, state, *a):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run.Checkpoints, "save", twice)
    assert launch(f"experiment={tiny}", f"run_dir={tmp_path / 'run'}") == 130
    assert not steps_saved(tmp_path / "run")
