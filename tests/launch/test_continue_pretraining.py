"""A run that begins with the weights of another: its model, its tokenizer, its loss; and then a run as
others.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from llm_jax.data import load_tokenizer
from llm_jax.experiment import read_experiment
from llm_jax.run.initial_weights import experiment_from_pairs
from llm_jax.run.run_folder import configuration_hash
from tests.data.conftest import documents, write_jsonl
from tests.scaling.tiny_grid import write_grid
from tests.tiny_run import checkpoint, launch, launch_processes, losses, summary, write_experiment

CONTINUE = '''"""Goes on."""

from llm_jax.data import DataConfig
from llm_jax.experiment import Experiment
from llm_jax.layout.presets import preset
from llm_jax.train.config import TO_BE_GIVEN, CheckpointConfig, EvaluateConfig, SampleConfig, TrainConfig
from llm_jax.train.optimizer import OptimizerConfig


def experiment() -> Experiment:
    return Experiment(
        layout=preset("single"),
        data=DataConfig(source={source!r}, workers=1),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        train=TrainConfig(start_from=TO_BE_GIVEN, steps=4, batch_size=8, sequence_length=32),
        evaluate=EvaluateConfig(every=0, batches=1, final_batches=1),
        checkpoint=CheckpointConfig(every=2),
        sample=SampleConfig(tokens=0),
    )
'''


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run that has learned something, and an experiment file beside it that goes on from such."""
    folder = tmp_path_factory.mktemp("source")
    first = write_experiment(folder)
    other = write_jsonl(folder / "other.jsonl", documents(400, seed=7))
    (folder / "more.py").write_text(CONTINUE.format(source=str(other)))
    assert (
        launch(
            f"experiment={first}",
            f"run_dir={folder / 'run'}",
            "train.steps=40",
            "optimizer.learning_rate=1e-2",
        )
        == 0
    )
    return folder


@pytest.fixture
def command(trained, tmp_path) -> list[str]:
    return [f"experiment={trained / 'more.py'}", f"run_dir={tmp_path / 'run'}", f"from={trained / 'run'}"]


def test_the_loss_goes_on_where_it_was(trained, command, tmp_path):
    assert launch(*command) == 0
    ended, begun = losses(trained / "run"), losses(tmp_path / "run")
    assert begun[1] < ended[1] - 1  # random weights: about ln 320
    assert abs(begun[1] - ended[40]) < 0.3  # other documents of the same kind
    assert ended[1] == pytest.approx(math.log(320), abs=0.3)
    said = summary(tmp_path / "run")
    assert said["start_from"] == str(trained / "run")
    experiment = read_experiment(tmp_path / "run")
    assert experiment.train.start_from == str(trained / "run")
    assert experiment.model == read_experiment(trained / "run").model
    assert (
        load_tokenizer(tmp_path / "run" / "tokenizer").fingerprint
        == load_tokenizer(trained / "run" / "tokenizer").fingerprint
    )


def test_the_first_weights_are_those_of_the_source_bit_for_bit(trained, command, tmp_path):
    """A step that changes nothing, since its learning rate rounds to nothing, saves them again."""
    assert launch(*command, "train.steps=1", "optimizer.learning_rate=1e-30", "optimizer.weight_decay=0") == 0
    there, here = checkpoint(trained / "run", 40), checkpoint(tmp_path / "run", 1)
    for name in (name for name in here if name.startswith("['parameters']")):
        np.testing.assert_array_equal(here[name], there[name], err_msg=name)


def test_it_goes_on_from_its_own_checkpoint_when_the_source_is_gone(trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "source")
    parts = [f"experiment={trained / 'more.py'}", f"from={tmp_path / 'source'}"]
    assert launch(*parts, f"run_dir={tmp_path / 'whole'}") == 0
    assert launch(*parts, f"run_dir={tmp_path / 'run'}", "train.steps=2", "optimizer.schedule=constant") == 0
    assert launch(*parts, f"run_dir={tmp_path / 'straight'}", "optimizer.schedule=constant") == 0
    shutil.rmtree(tmp_path / "source")
    assert launch(*parts, f"run_dir={tmp_path / 'run'}", "optimizer.schedule=constant") == 0
    assert "resuming at step 2" in capsys.readouterr().out
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert (
        launch(f"experiment={tmp_path / 'run' / 'config.yaml'}", "train.steps=5") == 0
    )  # by its own configuration, too
    assert launch(*parts, f"run_dir={tmp_path / 'new'}") == 2
    assert f"{tmp_path / 'source'}: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_two_starts_are_two_configurations(trained, command, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "twin")
    one, other = (
        experiment_from_pairs([("experiment", str(trained / "more.py")), ("from", str(path))])
        for path in (trained / "run", tmp_path / "twin")
    )
    same_tokenizer = dataclasses.replace(other, tokenizer=one.tokenizer)
    assert configuration_hash(one) != configuration_hash(same_tokenizer)
    assert launch(*command) == 0
    assert launch(*command[:2], f"from={tmp_path / 'twin'}", "train.steps=6") == 2
    assert f"train.start_from: {trained / 'run'} → {tmp_path / 'twin'}" in capsys.readouterr().err


def test_a_run_that_starts_from_nothing_has_the_hash_that_it_had():
    """Grids find their points by it."""
    assert (
        configuration_hash(experiment_from_pairs([("experiment", "quickstart")])) == "70dce6ebad72"
    )  # before there was a start_from


def test_on_a_layout_that_splits_the_weights(trained, command, tmp_path):
    assert launch(*command, "train.steps=2") == 0
    assert (
        launch(
            *command, "train.steps=2", f"run_dir={tmp_path / 'split'}", "layout=fsdp_tensor", "mesh.tensor=2"
        )
        == 0
    )
    assert losses(tmp_path / "split") == pytest.approx(
        losses(tmp_path / "run"), abs=1e-5
    )  # float32 sums in another order


@pytest.mark.slow  # of two processes, what tests/parity shows; of from=FOLDER, what the tests above show
def test_under_two_processes(trained, command, tmp_path):
    assert launch(*command, "train.steps=2") == 0
    done = launch_processes(2, *command, f"run_dir={tmp_path / 'two'}", "train.steps=2", "layout=fsdp")
    assert [p.returncode for p in done] == [0, 0], done[0].stderr + done[1].stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "run"), abs=1e-5)


def test_what_does_not_change_the_shapes_may_differ(command):
    assert (
        launch(
            *command,
            "train.steps=1",
            "model.attention=blocked",
            "model.rope_theta=20000",
            "model.compute_dtype=bfloat16",
        )
        == 0
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model.embed=64"], "undo one of: model.embed: 32 → 64"),
        (["model.layers=3"], "model.layers: 2 → 3"),
        (["tokenizer.vocab=400"], "tokenizer.vocab=400: from="),
        (["train.start_from=x"], "train.start_from=x: from="),
        (["from=x"], "from=: is given twice. Give one folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(command, tmp_path, capsys, arguments, says):
    assert launch(*command, *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_of_hugging_faces_is_gone_on_with_as_the_run_that_it_was_made_of(trained, command, tmp_path):
    from llm_jax.pretrained.save import main as save

    assert save([str(trained / "run"), str(tmp_path / "exported")]) == 0
    assert launch(*command, "train.steps=2") == 0
    assert (
        launch(
            *command[:2], f"from={tmp_path / 'exported'}", f"run_dir={tmp_path / 'theirs'}", "train.steps=2"
        )
        == 0
    )
    assert losses(tmp_path / "theirs") == pytest.approx(
        losses(tmp_path / "run"), abs=1e-6
    )  # one compiled program, the same bits of weights
    ours, theirs = (load_tokenizer(tmp_path / name / "tokenizer") for name in ("run", "theirs"))
    assert [theirs.encode(text) for text in documents(20)] == [ours.encode(text) for text in documents(20)]
    assert (tmp_path / "theirs" / "tokenizer" / "tokenizer_config.json").exists()


def test_points_of_a_grid_may_start_from_it_one_by_one(trained, tmp_path, capsys):
    fields = f"train=dataclasses.replace(base().train, start_from={str(trained / 'run')!r}, steps=2), "
    fields += f"tokenizer=dataclasses.replace(base().tokenizer, file={str(trained / 'run' / 'tokenizer')!r})"
    grid = write_grid(
        tmp_path,
        "over('optimizer.learning_rate', [1e-3, 2e-3])",
        more="\n\nimport dataclasses\n",
        fields=fields,
    )
    command = (f"experiment={grid}", f"run_dir={tmp_path / 'grid'}")
    assert launch(*command) == 0
    first = [losses(folder)[1] for folder in (tmp_path / "grid" / "points").iterdir()]
    assert first == [pytest.approx(losses(trained / "run")[40], abs=0.3)] * 2
    capsys.readouterr()
    assert launch(command[0], f"run_dir={tmp_path / 'vmap'}", "grid.executor=vmap") != 0
    assert "grid.executor=vmap starts runs from random weights" in "".join(capsys.readouterr())


def test_a_folder_of_a_loaded_model_is_no_run_folder_to_train_in(trained, command, tmp_path, capsys):
    """Its weights would be passed over."""
    (tmp_path / "run" / "weights").mkdir(parents=True)
    assert launch(*command) == 2
    assert f"experiment=continue_pretraining from={tmp_path / 'run'}" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["weights"]


def test_what_is_no_model_is_refused(trained, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for source, says in (
        (tmp_path / "none", "no such folder"),
        (tmp_path / "empty", "is no run folder"),
        ("", "from= is missing"),
    ):
        pairs = [f"from={source}"] if source else []
        assert launch(f"experiment={trained / 'more.py'}", f"run_dir={tmp_path / 'run'}", *pairs) == 2
        assert says in capsys.readouterr().err
    assert launch("experiment=continue_pretraining") == 2
    assert "Add from=RUN_OR_FOLDER" in capsys.readouterr().err
    assert launch("experiment=scaling/isoflop_cpu", f"from={trained / 'run'}") == 2
    assert "is a grid; write train.start_from into the grid's base" in capsys.readouterr().err
