"""Checkpoints: which are kept, what happens to a damaged one, and on which other layouts a run resumes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from llm_jax.core import checksums
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS
from llm_jax.processes.group import alone
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.config import CheckpointConfig
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import TrainModel
from tests.tiny_run import (
    checkpoint,
    launch,
    launch_process,
    losses,
    shas,
    steps_saved,
    summary,
    write_experiment,
)
from tests.training import SMALL


@pytest.fixture
def run(tiny, tmp_path) -> tuple[str, str, str]:
    return (f"experiment={tiny}", f"run_dir={tmp_path / 'run'}", "evaluate.every=0")


@pytest.fixture(scope="module")
def trained_for_four_steps(tmp_path_factory) -> Path:
    """A folder with an experiment and its run of four steps, which tests copy."""
    folder = tmp_path_factory.mktemp("four")
    write_experiment(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm_jax.run.run.device_peak", lambda mesh, dtype, processes=1: 1e11)
        arguments = (f"experiment={folder / 'tiny.py'}", f"run_dir={folder / 'run'}", "evaluate.every=0")
        assert launch(*arguments, "train.steps=4") == 0
    return folder


@pytest.fixture
def four_steps(trained_for_four_steps, tiny, tmp_path) -> tuple[str, str, str]:
    """The command of a run that has been trained for four steps: checkpoints 2 and 4."""
    shutil.copytree(trained_for_four_steps / "run", tmp_path / "run")
    experiment = trained_for_four_steps / "tiny.py"
    return (f"experiment={experiment}", f"run_dir={tmp_path / 'run'}", "evaluate.every=0")


def largest_file(step: Path) -> Path:
    """The largest file of a checkpoint, which has the weights."""
    return max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGE = {
    "weights cut short": lambda step: largest_file(step).write_bytes(
        largest_file(step).read_bytes()[: largest_file(step).stat().st_size // 2]
    ),
    "weights removed": lambda step: largest_file(step).unlink(),
    "state removed": lambda step: shutil.rmtree(step / "state"),
    "index emptied": lambda step: (step / "state" / "manifest.ocdbt").write_bytes(b""),
    "metadata removed": lambda step: (step / "state" / "_METADATA").unlink(),
    "metadata cut short": lambda step: (step / "state" / "_METADATA").write_text(
        (step / "state" / "_METADATA").read_text()[:99]
    ),
    "info removed": lambda step: (step / "info" / "metadata").unlink(),
    "checksums removed": lambda step: (step / "SHA256SUMS").unlink(),
    "a bit flipped": lambda step: flip(largest_file(step)),
}


def flip(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_found_and_the_file_named(run, tmp_path):
    assert launch(*run, "train.steps=2") == 0
    folder = tmp_path / "run" / "checkpoints" / "2"
    checksums.check(folder)
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        flip(path)
        with pytest.raises(checksums.Damaged, match=f"^{path.relative_to(folder)} is not what was written"):
            checksums.check(folder)
        path.write_bytes(content)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_each_process_checks_its_share_of_files_and_all_together_every_file(tmp_path):
    for i in range(7):
        (tmp_path / f"file{i}").write_text(str(i))
    checksums.write(tmp_path)
    (tmp_path / "file5").write_text("6")
    found = []
    for share in range(3):
        try:
            checksums.check(tmp_path, share, 3)
        except checksums.Damaged as error:
            found.append(str(error))
    assert found == ["file5 is not what was written: its checksum differs"]


NO_ROOM_FOR_CHECKPOINTS = """
import resource
from llm_jax.core import checksums
from llm_jax.train.checkpoint import Checkpoints
save = Checkpoints.save
def on_a_full_disk(self, state, step, *rest):
    if step == 4:
        self.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    save(self, state, step, *rest)
Checkpoints.save = on_a_full_disk
"""


def test_a_full_disk_is_one_line_and_the_last_good_checkpoint_is_kept(tmp_path):
    run_dir = tmp_path / "run"
    arguments = (f"experiment={write_experiment(tmp_path)}", f"run_dir={run_dir}", "evaluate.every=0")
    done = launch_process(
        *arguments, patch=NO_ROOM_FOR_CHECKPOINTS, devices=8
    )  # as here: else sums are taken in another order
    assert done.returncode == 1, done.stderr
    # A thread of TensorStore's may print that asyncio's loop, which it failed in, is closed: beside the line,
    # and within it.
    error = f"error: run_dir={run_dir}: File too large. "
    error += "Once this is fixed, run the same command again to resume from step 2"
    assert error in done.stderr
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["2"]
    assert launch(*arguments) == 0
    assert list(losses(run_dir)) == list(range(1, 9))
    assert steps_saved(run_dir) == [6, 8]


def test_an_older_checkpoint_goes_only_after_the_new_one_has_its_checksums(run, tmp_path, monkeypatch):
    write, seen = checksums.write, []

    def and_look(folder):
        seen.append(steps_saved(tmp_path / "run"))
        write(folder)

    monkeypatch.setattr(checksums, "write", and_look)
    assert launch(*run, "checkpoint.keep=1") == 0
    assert seen == [[], [2], [4], [6]]
    assert steps_saved(tmp_path / "run") == [8]


def test_a_checkpoint_that_can_not_be_made_durable_does_not_count(run, tmp_path, monkeypatch, capsys):
    write = checksums.write
    with monkeypatch.context() as patch:
        patch.setattr(
            checksums, "write", lambda folder: write(folder) if folder.name != "saving.4" else os.fsync(-1)
        )
        patch.setattr(
            os,
            "fsync",
            lambda descriptor, sync=os.fsync: sync(descriptor) if descriptor >= 0 else disk_is_full(),
        )
        assert launch(*run) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert steps_saved(tmp_path / "run") == [2]
    assert launch(*run) == 0


def disk_is_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_is_reported_and_set_aside_and_the_one_before_is_used(
    four_steps, tmp_path, capsys, damage
):
    reference = losses(tmp_path / "run")
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints" / "4").rglob("*"))
    DAMAGE[damage](tmp_path / "run" / "checkpoints" / "4")
    (tmp_path / "run" / "summary.json").unlink()
    capsys.readouterr()
    assert launch(*four_steps, "train.steps=4") == 0
    out = capsys.readouterr().out
    assert "checkpoint 4 can't be read and was moved to" in out
    assert "resuming at step 2" in out
    assert steps_saved(tmp_path / "run") == [2, 4]
    assert losses(tmp_path / "run") == reference  # steps 3 and 4, done again, too
    assert set(kept) >= {p.name for p in (tmp_path / "run" / "damaged" / "4").rglob("*")}


def test_where_no_checkpoint_can_be_read_nothing_is_moved_and_nothing_starts_over(
    four_steps, tmp_path, capsys
):
    for step in (2, 4):
        largest_file(tmp_path / "run" / "checkpoints" / str(step)).unlink()
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert launch(*four_steps, "train.steps=6") == 2
    error = capsys.readouterr().err
    assert "has 2 checkpoints and none can be read; 4: " in error
    assert error.count("\n") == 1
    assert steps_saved(tmp_path / "run") == [2, 4]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("host"), None),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating"), None),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (OSError(5, "I/O error"), "Input/output error"),
    ],
)
def test_an_error_that_is_not_damage_moves_nothing(four_steps, tmp_path, monkeypatch, capsys, error, said):

    def fail(self, step, abstract):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "restore", fail)
        if said is None:
            with pytest.raises(type(error)):
                launch(*four_steps, "train.steps=6")
        else:
            assert launch(*four_steps, "train.steps=6") == 1
            assert (
                capsys.readouterr().err
                == f"error: run_dir={tmp_path / 'run'}: {said}. Once this is fixed, "
                + ("run the same command again to resume from step 4\n")
            )
    assert steps_saved(tmp_path / "run") == [2, 4]
    assert launch(*four_steps, "train.steps=6") == 0


def test_checkpoint_of_another_model_is_refused_by_the_first_difference(run, tmp_path, capsys):
    assert launch(*run, "train.steps=2") == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(
        config.read_text().replace("mlp: 64", "mlp: 96")
    )  # as if the program had changed, not the configuration
    assert launch(*run, "train.steps=4", "model.mlp=96") == 2
    error = capsys.readouterr().err
    assert "checkpoint 2 is of another model or optimizer" in error
    assert "mlp.down is float32 (2, 64, 32), and this experiment's is float32 (2, 96, 32)" in error
    assert steps_saved(tmp_path / "run") == [2]


def test_the_last_k_and_the_best_are_kept(tiny, tmp_path, monkeypatch):
    from llm_jax.run import run as runs

    scores = iter([5.0, 3.0, 4.0, float("nan"), 6.0, 3.5, 3.2, 3.1])
    monkeypatch.setattr(
        runs.Evaluator,
        "__call__",
        lambda self, state: {"eval_loss": next(scores), "eval_bits_per_byte": 1.0, "eval_tokens": 1.0},
    )
    arguments = (
        f"experiment={tiny}",
        f"run_dir={tmp_path / 'run'}",
        "evaluate.every=1",
        "checkpoint.every=3",
        "checkpoint.keep=2",
    )
    assert launch(*arguments) == 0
    assert steps_saved(tmp_path / "run") == [
        2,
        6,
        8,
    ]  # step 2 is no multiple of 3: the new best is saved for its own sake


def test_without_best_only_the_last_k_are_kept(tiny, tmp_path):
    arguments = ("checkpoint.every=1", "checkpoint.keep=3", "checkpoint.keep_best=false", "evaluate.every=0")
    assert launch(f"experiment={tiny}", f"run_dir={tmp_path / 'run'}", *arguments) == 0
    assert steps_saved(tmp_path / "run") == [6, 7, 8]


def test_a_finished_run_prints_that_it_is_and_changes_nothing(run, tmp_path, capsys):
    assert launch(*run, "train.steps=2") == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    for steps, where in ((2, "step 2 of 2"), (1, "step 2, beyond train.steps=1")):
        capsys.readouterr()
        assert launch(*run, f"train.steps={steps}") == 0
        assert f"is finished, at {where}" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_more_steps_resume_the_run_and_the_change_of_the_schedule_is_printed(run, tmp_path, capsys):
    assert launch(*run, "train.steps=2") == 0
    capsys.readouterr()
    assert launch(*run, "train.steps=4") == 0
    out = capsys.readouterr().out
    assert "train.steps: 2 → 4" in out
    assert "the learning-rate schedule (cosine) now ends at step 4" in out
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]
    assert summary(tmp_path / "run")["tokens"] == 4 * 256


def test_wall_seconds_add_up_over_starts_and_speed_is_that_of_the_last(run, tmp_path):
    assert launch(*run, "train.steps=4") == 0
    first = summary(tmp_path / "run")
    assert launch(*run, "train.steps=8") == 0
    second = summary(tmp_path / "run")
    assert (
        second["wall_seconds"] > first["wall_seconds"] * 0.5
    )  # the checkpoint's own time is a little before the end's
    assert second["tokens_per_second"] > 256 / second["wall_seconds"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(("layout=single",), marks=pytest.mark.slow),
        ("layout=fsdp_tensor", "mesh.data=4", "mesh.tensor=2"),
        pytest.param(("layout=data_parallel", "mesh.data=2"), marks=pytest.mark.slow),
    ],
)
def test_saved_on_fsdp_over_8_devices_resumes_on_other_layouts_with_equal_tokens_and_losses(
    run, tmp_path, other
):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    run = (run[0], run[2])
    assert launch(*run, f"run_dir={whole}", "layout=fsdp", "checkpoint.every=4") == 0
    shutil.copytree(whole, moved)  # a copy of the run after step 4
    shutil.rmtree(moved / "checkpoints" / "8")
    for name in ("summary.json", "metrics.jsonl"):
        (moved / name).unlink()
    assert launch(*run, f"run_dir={moved}", *other) == 0
    assert list(losses(moved)) == [5, 6, 7, 8]
    assert shas(moved) == {step: sha for step, sha in shas(whole).items() if step > 4}
    # float32 sums are taken in another order on another mesh: 1e-7 to 2e-6 was measured (tests/parity)
    np.testing.assert_allclose(
        list(losses(moved).values()), [losses(whole)[s] for s in (5, 6, 7, 8)], rtol=1e-5
    )
    for name, values in checkpoint(moved, 8).items():
        if ".parameters" in name or "'parameters'" in name:
            # Adam divides by a gradient's own size, so where it is nearly 0 rounding becomes a part of the
            # step of 3e-3
            np.testing.assert_allclose(values, checkpoint(whole, 8)[name], atol=3e-4, err_msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion", "muon"])
@pytest.mark.parametrize("layout", ["single", "fsdp", "fsdp_tensor"])
def test_the_abstract_state_of_a_restore_equals_a_new_state(layout, optimizer):
    place = MeshPlacement(PRESETS[layout], make_mesh(PRESETS[layout], {}))
    program = TrainModel(SMALL.resolved(), OptimizerConfig(name=optimizer), place, 0.9)
    expected, state = program.abstract_state(), program.new_state(0)
    for (path, there), here in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(state), strict=True
    ):
        assert (there.shape, there.dtype) == (here.shape, here.dtype), path
        assert there.sharding.is_equivalent_to(here.sharding, here.ndim), path


def test_bfloat16_parameters_keep_float32_moments_through_a_restart(run, tmp_path):
    run = (*run, "model.parameter_dtype=bfloat16", "train.ema_decay=0.9")
    other = (run[0], f"run_dir={tmp_path / 'other'}", *run[2:])
    assert launch(*run) == 0
    assert launch(*other, "train.steps=8", "checkpoint.every=4", "checkpoint.keep=9") == 0
    shutil.rmtree(tmp_path / "other" / "checkpoints" / "8")
    (tmp_path / "other" / "summary.json").unlink()
    assert launch(*other) == 0  # from step 4
    assert losses(tmp_path / "other") == losses(tmp_path / "run")
    for name, values in checkpoint(tmp_path / "run", 8).items():
        np.testing.assert_array_equal(values, checkpoint(tmp_path / "other", 8)[name], err_msg=name)
        if values.ndim and "parameters" not in name:
            assert values.dtype == np.float32, name


def test_the_rest_of_an_interrupted_save_is_no_checkpoint(run, tmp_path):
    assert launch(*run, "train.steps=2") == 0
    left = tmp_path / "run" / "checkpoints" / "saving.4.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "run" / "checkpoints" / "2", left)
    assert launch(*run, "train.steps=4") == 0
    assert steps_saved(tmp_path / "run") == [2, 4]
    assert not left.exists()


def test_reading_changes_nothing_in_the_folder(run, tmp_path):
    assert launch(*run, "train.steps=2") == 0
    (tmp_path / "run" / "checkpoints" / "saving.4").mkdir()
    with alone() as group:
        reader = Checkpoints(tmp_path / "run", CheckpointConfig(), group, read_only=True)
    assert reader.steps() == [2]
    reader.close()
    assert (tmp_path / "run" / "checkpoints" / "saving.4").exists()
