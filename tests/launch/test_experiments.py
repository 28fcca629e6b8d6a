"""What an experiment file and the command line can say."""

from __future__ import annotations

import pytest

from llm_jax.core.errors import UserError
from llm_jax.experiment import (
    Experiment,
    list_experiments,
    load_experiment,
    override,
    read_yaml,
    resolved,
    to_yaml,
)
from llm_jax.layout.presets import PRESETS
from tests.tiny_run import launch, losses, summary, write_experiment


def test_list_shows_every_experiment_with_its_purpose(capsys):
    assert launch("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(list_experiments())
    assert any(line.startswith("quickstart") and "A small language model" in line for line in lines)


def test_experiments_in_subfolders_and_beside_the_user_are_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "experiments" / "scaling").mkdir(parents=True)
    write_experiment(tmp_path, "x").rename(tmp_path / "experiments" / "scaling" / "x.py")
    (tmp_path / "experiments" / "broken.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    assert set(list_experiments()) >= {"scaling/x", "quickstart", "broken"}
    assert load_experiment("scaling/x").name == "scaling/x"  # so two folders' x don't share a run folder
    assert launch("--list") == 0
    assert "can't be read: line 1" in capsys.readouterr().out


def test_help_teaches_by_examples_and_says_the_exit_codes(capsys):
    for arguments in ([], ["--help"], ["-h", "experiment=quickstart"]):
        assert launch(*arguments) == 0
        text = capsys.readouterr().out
        for word in (
            "experiment=quickstart",
            "train.steps=100",
            "layout=NAME",
            "run_dir=",
            "--list",
            "--show",
            "XLA_FLAGS",
            "85",
        ):
            assert word in text
        assert all(name in text for name in PRESETS)


@pytest.mark.parametrize("name", ["quickstart", "tiny"])
def test_what_show_prints_is_the_same_experiment_again(name, tiny, tmp_path, capsys):
    arguments = [
        f"experiment={tiny if name == 'tiny' else name}", "train.steps=7", "layout=fsdp", "mesh.data=4", "model.window=null",
        "data.mixture.a b.txt=2", 'sample.prompts=["", "two words: #", "日本"]', "run_dir=some where",
    ]  # fmt: skip
    assert launch("--show", *arguments) == 0
    shown = capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(shown)
    pairs = [tuple(a.split("=", 1)) for a in arguments[1:]]
    meant = resolved(override(load_experiment(arguments[0].split("=", 1)[1]), pairs))
    assert resolved(load_experiment(str(tmp_path / "config.yaml"))) == meant
    assert launch("--show", f"experiment={tmp_path / 'config.yaml'}") == 0
    assert capsys.readouterr().out == shown
    assert meant.sample.prompts == ("", "two words: #", "日本")
    assert meant.data.mixture == {"a b.txt": 2.0}


@pytest.mark.parametrize(
    ("pair", "found"),
    [
        (("train.steps", "5"), lambda e: e.train.steps == 5),
        (("optimizer.learning_rate", "1e-4"), lambda e: e.optimizer.learning_rate == 1e-4),
        (("optimizer.learning_rate", "1"), lambda e: e.optimizer.learning_rate == 1.0),
        (("evaluate.batches", "null"), lambda e: e.evaluate.batches is None),
        (("name", "a name of three words"), lambda e: e.name == "a name of three words"),
        (("data.source", "a=b,c.txt"), lambda e: e.data.source == "a=b,c.txt"),
        (("data.mixture", "{x.txt: 1, y: 3}"), lambda e: e.data.mixture == {"x.txt": 1.0, "y": 3.0}),
        (("data.mixture.dir/x.txt", "0.5"), lambda e: e.data.mixture == {"dir/x.txt": 0.5}),
        (("layout", "fsdp"), lambda e: e.layout.stored == {"embed": "data"}),
        (("layout.compute.batch", "data"), lambda e: e.layout.compute == {"batch": "data"}),
        (("mesh.data", "2"), lambda e: e.mesh == {"data": 2}),
        (("train.batch_sha", "false"), lambda e: e.train.batch_sha is False),
        (("data.source", "*.txt"), lambda e: e.data.source == "*.txt"),  # an alias in YAML
        (("data.text_key", "1e5"), lambda e: e.data.text_key == "1e5"),
    ],
)
def test_an_override_sets_its_value(tiny, pair, found):
    assert found(override(load_experiment(str(tiny)), [pair]))


def test_a_table_given_whole_replaces_the_one_before():
    experiment = override(Experiment(), [("data.mixture.a", "1")])
    assert override(experiment, [("data.mixture", "{b: 2}")]).data.mixture == {"b": 2.0}
    assert override(experiment, [("data.mixture", "{}"), ("data.source", "c")]).data.sources() == {"c": 1.0}
    with pytest.raises(UserError, match="which replaces it"):
        override(experiment, [("data.source", "c")])


def test_the_last_of_two_overrides_of_a_key_counts():
    assert override(Experiment(), [("train.steps", "3"), ("train.steps", "4")]).train.steps == 4


def test_the_configuration_of_a_run_runs_again_to_the_same_losses(tiny, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    assert launch(f"experiment={tiny}", f"run_dir={a}", "train.steps=3", "optimizer.learning_rate=1e-2") == 0
    assert launch(f"experiment={a / 'config.yaml'}", f"run_dir={b}") == 0
    assert losses(a) == losses(b)


def test_a_run_folder_given_as_experiment_is_pointed_at_its_configuration(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("")
    assert launch(f"experiment={tmp_path}") == 2
    assert "is a run folder; write experiment=" in capsys.readouterr().err


OPTIMIZER = """
import optax
from llm_jax.layout.layout import Layout
from llm_jax.train.optimizer import register


@register("sign")
def sign(config, info):
    return optax.sign_sgd(1.0)
"""


@pytest.mark.parametrize(
    ("fields", "key", "value"),
    [
        (
            {"model": "ModelConfig(layers=1, embed=24, heads=3, kv_heads=1, mlp=40, norm='layer')"},
            "parameters",
            # embedding; query, out; key, value; mlp; 3 norms with biases
            24 * 320 + 24 * 24 * 2 + 24 * 8 * 2 + 3 * 24 * 40 + 6 * 24,
        ),
        ({"layout": "Layout('mine', mesh={'rows': 2, 'columns': 4}, compute={'batch': 'rows', 'mlp': "
        "'columns'})"}, "mesh", "rows=2, columns=4"),
        ({"optimizer": "OptimizerConfig(name='sign', learning_rate=1e-3)"}, "step", 2),
        ({"data": "dataclasses.replace(base_.data, mixture={base_.data.source: 1.0, "
        "__file__.replace('.py', '.txt'): 3.0})"}, "step", 2),
    ],
    ids=["model", "layout", "optimizer", "mixture"],
)  # fmt: skip
def test_an_experiment_file_defines_a_new_part_without_touching_the_package(
    tiny, tmp_path, fields, key, value
):
    (tmp_path / "mine.txt").write_text("A text of our own, said again and again. " * 400)
    path = write_experiment(tmp_path, "mine", OPTIMIZER, **fields)
    assert launch(f"experiment={path}", f"run_dir={tmp_path / 'run'}", "train.steps=2") == 0
    assert summary(tmp_path / "run")[key] == value


@pytest.mark.parametrize("layout", PRESETS)
def test_a_configuration_that_is_written_is_read_as_it_was(tmp_path, layout):
    pairs = [("layout", layout), ("name", "1e5"), ("sample.prompts", "[no, 010, 'a: b', '', 'null']"), ("data.mixture", "{a.txt: 1, b: 2}"),
             ("optimizer.matrix_learning_rate", "1e-5"), ("model.window_layers", "0,2"), ("mesh.data", "2")]  # fmt: skip
    experiment = override(Experiment(), pairs)
    (tmp_path / "config.yaml").write_text(to_yaml(experiment))
    again = read_yaml(tmp_path / "config.yaml")
    assert again == experiment
    assert list(again.layout.mesh) == list(experiment.layout.mesh)
