"""Adapters as a user trains them: from a model, resumed bit for bit, evaluated and used merged or apart."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.config_tree import flat
from llm_jax.core.errors import UserError
from llm_jax.core.log import no_log
from llm_jax.model.adapters import AdapterConfig
from llm_jax.pretrained.model import open_model
from llm_jax.pretrained.source import open_source
from llm_jax.pretrained.weights import read_weights
from llm_jax.train.state import TrainModel
from tests.tiny_run import checkpoint, launch, losses, steps_saved, summary

ADAPTER = ("adapter.rank=3", "adapter.alpha=6", "adapter.dora=true", "train.trainable=[final_norm.scale]")


@pytest.fixture
def run(tiny, tmp_path):
    """Trains the tiny experiment in a folder of that name."""

    def train(name: str, *arguments: object, code: int = 0) -> Path:
        assert launch(f"experiment={tiny}", f"run_dir={tmp_path / name}", *arguments) == code
        return tmp_path / name

    return train


def test_an_adapter_is_trained_resumed_and_opened(run, capsys):
    """From a model, with a norm beside it; its checkpoints hold nothing else, and the base by its sha256."""
    base = run("base", "train.steps=1", "checkpoint.every=1", "evaluate.batches=1")
    more = (f"from={base}", *ADAPTER, "train.steps=4", "checkpoint.every=2", "evaluate.every=4")
    whole = run("whole", *more)
    assert "DoRA of rank 3 on attention.key, attention.out" in capsys.readouterr().out
    names = set(checkpoint(whole, 4))
    weights = {name for name in names if "['parameters']" in name}
    assert len(weights) == 1 + 3 * 7
    assert all("lora" in name or "magnitude" in name or "final_norm" in name for name in weights)
    moments = [name for name in names if "['moments']" in name]
    assert len(moments) == 2 * len(weights) + 1
    info = json.loads((whole / "checkpoints" / "4" / "info" / "metadata").read_text())
    assert info["frozen"]["start"]["path"] == str(base)

    cut = run("cut", *more)
    for step in steps_saved(cut):
        if step > 2:
            shutil.rmtree(cut / "checkpoints" / str(step))
    (cut / "summary.json").unlink()
    run("cut", *more)
    assert losses(cut) == losses(whole)
    assert len(losses(whole)) == 4
    ours, theirs = checkpoint(whole, 4), checkpoint(cut, 4)
    assert all((ours[name] == theirs[name]).all() for name in names)

    merged = open_model(whole)
    program = TrainModel(
        merged.config,
        merged.program.optimizer,
        merged.place,
        adapter=AdapterConfig(rank=3, alpha=6, dora=True),
    )
    apart, _ = read_weights(open_source(whole), program, None, no_log)
    assert flat(apart).keys() > flat(merged.parameters).keys()
    logits = [logits_of(*model) for model in ((merged.program, merged.parameters), (program, apart))]
    np.testing.assert_allclose(*logits, atol=1e-5)
    started = open_model(base)
    assert np.abs(logits[0] - logits_of(started.program, started.parameters)).max() > 1e-3
    scores = evaluated(whole)
    assert scores == pytest.approx(summary(whole)["eval_loss"], rel=1e-6)

    run("base", "train.steps=2", "checkpoint.every=1")
    with pytest.raises(UserError, match=r"train.start_from=.*base: has other weights"):
        open_model(whole)
    run("whole", f"from={base}", *ADAPTER, "train.steps=6", code=2)
    assert "its weights are not those that this run was trained beside" in capsys.readouterr().err


def logits_of(program: TrainModel, parameters: Any) -> np.ndarray:
    ids = np.arange(1, 25, dtype=np.int32).reshape(2, 12)
    with jax.set_mesh(program.place.mesh):
        return np.asarray(jax.jit(lambda p: program.model(p)(jnp.asarray(ids)))(parameters))


def evaluated(run_dir: Path) -> float:
    from llm_jax.evaluate.__main__ import main

    out = run_dir / "scores.json"
    assert main([str(run_dir), "batches=1", f"out={out}"]) == 0
    return json.loads(out.read_text())["eval_loss"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["adapter.rank=4"], "adapter.rank=4: an adapter changes a trained model, .*Add from=RUN_OR_FOLDER"),
        (["adapter.alpha=4"], "adapter.alpha=4.0: has an effect only with adapter.rank=16"),
        (["adapter.rnk=4"], "adapter.rnk=4: there is no key .* did you mean 'adapter.rank'"),
    ],
)
def test_mistakes_are_one_line(run, capsys, arguments, error):
    run("wrong", *arguments, code=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(error, lines[0]), lines
