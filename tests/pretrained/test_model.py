"""open_model: the weights of a run on any layout and in any dtype, and the errors without usable weights."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.layout.presets import preset
from llm_jax.pretrained import load_model
from llm_jax.pretrained.model import open_model
from llm_jax.pretrained.source import open_source
from tests.tiny_run import checkpoint, launch, write_experiment


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("opened")
    path = folder / "run"
    assert (
        launch(
            f"experiment={write_experiment(folder)}",
            f"run_dir={path}",
            "checkpoint.keep=3",
            "checkpoint.keep_best=false",
        )
        == 0
    )
    return path


def logits_of(opened) -> np.ndarray:
    tokens_BT = jnp.asarray(np.random.default_rng(0).integers(4, 300, (8, 16)))
    with jax.set_mesh(opened.place.mesh):
        tokens_BT = jax.device_put(tokens_BT, opened.place.sharding(("batch", None), "compute"))
        return np.asarray(jax.jit(lambda p, t: opened.program.model(p)(t))(opened.parameters, tokens_BT))


def test_the_newest_weights_are_those_of_the_checkpoint_and_nothing_else_is_read(run_dir):
    opened = open_model(run_dir)
    saved = {
        name.removeprefix("['parameters']"): a
        for name, a in checkpoint(run_dir, 8).items()
        if name.startswith("['parameters']")
    }
    read = {
        jax.tree_util.keystr(path): np.asarray(a)
        for path, a in jax.tree_util.tree_leaves_with_path(opened.parameters)
    }
    assert opened.step == 8
    assert sorted(saved) == sorted(read)
    assert all(np.array_equal(saved[name], read[name]) for name in saved)
    assert opened.tokenizer.decode(opened.tokenizer.encode("a b")) == "a b"


def test_it_computes_the_same_under_another_layout(run_dir):
    one, many = (
        open_model(run_dir),
        open_model(run_dir, layout=preset("fsdp_tensor"), mesh={"data": 2, "tensor": 2}),
    )
    assert many.place.mesh.size == 4
    np.testing.assert_allclose(
        logits_of(many), logits_of(one), atol=1e-5, rtol=0
    )  # float32, sums in another order


def test_a_dtype_is_of_weights_and_of_what_is_computed(run_dir):
    opened = open_model(run_dir, dtype="bfloat16")
    assert {a.dtype.name for a in jax.tree.leaves(opened.parameters)} == {"bfloat16"}
    assert opened.config.compute_dtype == "bfloat16"


def test_an_earlier_step_can_be_given(run_dir):
    assert open_model(run_dir, step=4).step == 4
    with pytest.raises(UserError, match=r"step=5: .* there are 4, 6, 8"):
        open_model(run_dir, step=5)


def test_a_damaged_checkpoint_is_logged_and_the_one_before_it_is_read_unless_its_step_was_given(
    run_dir, tmp_path
):
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    victim = next(
        path
        for path in sorted((copy / "checkpoints" / "8").rglob("*"))
        if path.is_file() and path.stat().st_size > 100
    )
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0\0")
    lines: list[str] = []
    assert open_model(copy, log=lines.append).step == 6
    assert len(lines) == 1
    assert "checkpoint 8 is damaged" in lines[0]
    with pytest.raises(UserError, match=r"step=8: .*damaged"):
        open_model(copy, step=8, log=lines.append)


def test_a_file_in_place_of_a_checkpoint_is_a_damaged_one(run_dir, tmp_path):
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (run / "checkpoints" / "9").write_text("")
    lines: list[str] = []
    assert open_model(run, log=lines.append).step == 8
    assert "checkpoint 9 is damaged" in lines[0]


def test_the_moving_average_is_what_evaluation_sees(tmp_path):
    run_dir = tmp_path / "run"
    assert (
        launch(f"experiment={write_experiment(tmp_path)}", f"run_dir={run_dir}", "train.ema_decay=0.5") == 0
    )
    opened, saved = open_model(run_dir), checkpoint(run_dir, 8)
    np.testing.assert_array_equal(opened.parameters["embedding"], saved["['average']['embedding']"])


def test_a_folder_without_a_model_is_refused_in_one_line(run_dir, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_model(tmp_path / "none")
    with pytest.raises(UserError, match=r"no run folder \(it has no config.yaml\)"):
        open_model(tmp_path)
    empty = tmp_path / "empty"
    shutil.copytree(run_dir, empty, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match="has no checkpoint yet"):
        open_model(empty)
    with pytest.raises(UserError, match=r"dtype=float16: must be one of|dtype=float16: did you mean"):
        open_model(run_dir, dtype="float16")


def test_weights_of_another_model_are_refused_by_name(run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("mlp: 64", "mlp: 96"))
    with pytest.raises(
        UserError,
        match=r"is of another model \(blocks.mlp.down is \(2, 64, 32\), and the configuration's is \(2, "
        r"96, 32\)\)",
    ):
        open_model(copy)


def test_a_model_that_was_trained_with_cudnn_is_opened_without_it_and_that_is_logged(run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("attention: xla", "attention: cudnn", 1))
    lines: list[str] = []
    opened = open_model(copy, log=lines.append)
    assert opened.config.attention == "xla"
    assert dataclasses.asdict(opened.config)["attention"] == "xla"
    assert "model.attention=cudnn" in lines[0]


@pytest.mark.parametrize("leave_out", [("model.layers.1.*",), ("*",), ("a", "b")])
def test_leave_out_is_refused_where_it_has_no_effect(run_dir, leave_out):
    """A run's checkpoints are read whole; a source that is open has its tensors already."""
    for opens in (open_source, load_model, open_model):
        with pytest.raises(
            UserError, match=r"leave_out=.*: .* is a run with checkpoints, which are read whole"
        ):
            opens(run_dir, leave_out=leave_out)
    with pytest.raises(TypeError, match="give it to open_source"):
        open_model(open_source(run_dir), leave_out=leave_out)


def test_a_run_is_opened_with_what_is_in_its_folder(run_dir, tmp_path):
    """A config.yaml from elsewhere may name any file: to use the model none of them is read, or written."""
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    lines = (copy / "config.yaml").read_text().splitlines()
    named = {
        "  file:": tmp_path / "private.json",
        "  source:": tmp_path / "private.txt",
        "  start_from:": tmp_path / "other",
    }
    named |= {"  cache_dir:": tmp_path / "cache", "run_dir:": tmp_path / "elsewhere"}
    for start, path in named.items():
        assert sum(line.startswith(start) for line in lines) == 1
        lines = [f"{start} {path}" if line.startswith(start) else line for line in lines]
    (copy / "config.yaml").write_text("\n".join(lines) + "\n")
    before = open_model(run_dir)
    opened = open_model(copy)
    assert opened.tokenizer.fingerprint == before.tokenizer.fingerprint
    np.testing.assert_array_equal(logits_of(opened), logits_of(before))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
