"""A run's adapter goes to a PEFT folder and back: exported apart or merged, and trained further
(`adapter.from=FOLDER`)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.config_tree import flat
from llm_jax.core.errors import UserError
from llm_jax.huggingface.peft import LowRank
from llm_jax.huggingface.peft_write import made_here, write_peft
from llm_jax.model.adapters import AdapterConfig
from llm_jax.pretrained import load_model
from llm_jax.pretrained.adapter import base_of
from llm_jax.pretrained.adapter_apart import adapter_config, adapter_of_run, of_layers
from llm_jax.pretrained.model import open_model
from llm_jax.pretrained.save import main as save
from llm_jax.pretrained.save_adapter import base_name
from llm_jax.pretrained.source import open_source
from llm_jax.pretrained.weights import with_new_adapter
from llm_jax.train.state import TrainModel, nested
from tests.huggingface.expected import FIXTURES
from tests.tiny_run import launch, write_experiment

ADAPTERS = FIXTURES.parent / "adapters"
FILES = ("adapter_config.json", "adapter_model.safetensors")
LORA = (
    "adapter.rank=3",
    "adapter.alpha=7",
    "adapter.targets=query|key|value|out|down",
    "adapter.ranks={key: 1}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """base: a Hugging Face folder of a run; lora: a run of an adapter on it; peft: its PEFT folder."""
    folder = tmp_path_factory.mktemp("adapters")
    write_experiment(folder)
    assert launch(f"experiment={folder}/tiny.py", f"run_dir={folder}/run", "train.steps=2") == 0
    assert save([f"{folder}/run", f"{folder}/base"]) == 0
    assert train(folder, "lora", "train.steps=3", *LORA, "optimizer.learning_rate=0.05") == 0
    assert save([f"{folder}/lora", f"{folder}/peft", "adapter=apart"]) == 0
    return folder


def train(folder: Path, name: str, *keys: str, base: str = "base") -> int:
    """A run that starts from the base; its exit code."""
    return launch(f"experiment={folder}/tiny.py", f"from={folder}/{base}", f"run_dir={folder}/{name}", *keys)


def same_files(one: Path, other: Path) -> bool:
    return all((one / file).read_bytes() == (other / file).read_bytes() for file in FILES)


def logits(model) -> np.ndarray:
    tokens = jnp.asarray(np.random.default_rng(0).integers(4, 300, (2, 16)))
    return np.asarray(jax.jit(lambda t: model(t))(tokens))


def test_a_runs_adapter_is_a_peft_folder_that_names_its_base(folder):
    tree = json.loads((folder / "peft" / FILES[0]).read_text())
    assert tree["base_model_name_or_path"] == str(folder / "base")
    assert (tree["r"], tree["lora_alpha"], tree["use_dora"]) == (3, 7, False)
    assert tree["target_modules"] == ["down_proj", "k_proj", "o_proj", "q_proj", "v_proj"]
    assert set(tree["rank_pattern"].values()) == {1}
    again = load_model(folder / "base", dtype="float32", adapter=folder / "peft")
    assert np.abs(logits(again) - logits(load_model(folder / "lora", dtype="float32"))).max() < 1e-6


def test_merged_it_is_the_whole_model_and_its_change_of_logits_is_printed(folder, capsys):
    assert save([f"{folder}/lora", f"{folder}/merged", "adapter=merged", "dtype=bfloat16"]) == 0
    printed, logged = capsys.readouterr()
    lines = [*printed.splitlines(), *logged.splitlines()]
    assert len({*lines}) == len(lines)
    line = next(line for line in printed.splitlines() if line.startswith("merged in float32"))
    largest = float(line.split("largest change of a logit is ")[1].split(",")[0])
    merged, run = (load_model(folder / name, dtype="float32") for name in ("merged", "lora"))
    assert 0.1 * largest < np.abs(logits(merged) - logits(run)).max() < 3 * largest  # of other tokens
    assert save([f"{folder}/lora", f"{folder}/merged32"]) == 0
    assert np.abs(logits(load_model(folder / "merged32")) - logits(run)).max() < 1e-6


def test_in_and_out_again_the_files_have_the_same_bytes(folder):
    assert save([f"{folder}/peft", f"{folder}/again", "adapter=apart"]) == 0
    assert same_files(folder / "peft", folder / "again")


def test_trained_further_a_peft_folder_is_only_needed_at_the_start(folder):
    shutil.copytree(folder / "peft", folder / "lent")
    still = (f"adapter.from={folder}/lent", "optimizer.learning_rate=1e-30", "optimizer.weight_decay=0")
    assert train(folder, "still", *still, "train.steps=1") == 0
    assert save([f"{folder}/still", f"{folder}/through", "adapter=apart"]) == 0
    assert same_files(folder / "peft", folder / "through")
    shutil.rmtree(folder / "lent")
    assert train(folder, "still", *still, "train.steps=2") == 0


@pytest.mark.parametrize(("name", "start", "dora"), [("llama", "pissa", True), ("gpt2", "pissa", False), ("llama", "olora", False)])  # fmt: skip
def test_an_adapter_that_began_as_a_part_of_the_base_is_exported_for_the_whole_base(
    name, start, dora, tmp_path
):
    base = open_model(FIXTURES / name, dtype="float32", tokenizer=False)
    config = AdapterConfig(rank=2, alpha=3.0, start=start, dora=dora, rslora=True)
    model = TrainModel(base.config, base.experiment.optimizer, base.place, adapter=config)
    first = flat(with_new_adapter(jax.tree.map(jnp.copy, base.parameters), 0, model))
    rng = np.random.default_rng(0)
    trained = {
        name: array + 0.02 * rng.standard_normal(array.shape, np.float32) if name in model.trained else array
        for name, array in first.items()
    }
    arrays = [{name: np.asarray(x) for name, x in tree.items()} for tree in (trained, first)]
    low_rank = adapter_of_run(model.adapted, *arrays)
    peft = base_of(open_source(FIXTURES / name))
    write_peft(made_here(low_rank, peft, "base"), peft, tmp_path)
    again = open_model(FIXTURES / name, dtype="float32", tokenizer=False, adapter=tmp_path)
    with jax.set_mesh(base.place.mesh):
        merged = flat(jax.jit(model.merged)(nested(trained)))
    for path, array in flat(again.parameters).items():
        np.testing.assert_allclose(array, merged[path], atol=5e-6, err_msg=path)


SLOW = ("llama/layers", "llama/pissa", "mixtral/all", "deepseek_v3/attention")
"""Adapters that are as the others for a run: what they show is where their arrays go (tests/huggingface)."""


@pytest.mark.parametrize(
    "case",
    [
        "llama/patterns",
        "llama/dora",
        "mixtral/separate",
        "gpt2/pissa",
        *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW),
    ],
)
def test_beside_its_base_an_adapter_computes_what_it_does_merged(case):
    base = FIXTURES / case.split("/")[0]
    source = open_source(base, adapter=ADAPTERS / case)
    apart, merged = (open_model(source, dtype="float32", tokenizer=False, apart=a) for a in (True, False))
    whole = jax.jit(apart.program.merged)
    with jax.set_mesh(apart.place.mesh):
        found = flat(whole(apart.parameters))
    for name, array in flat(merged.parameters).items():
        np.testing.assert_allclose(found[name], array, atol=2e-6, err_msg=name)


def test_experts_with_different_factors_have_one_in_a_run():
    low = LowRank(
        np.ones((1, 2, 3, 2)), np.ones((1, 2, 2, 4)), np.array([[2, 1]]), np.array([[4.0, 1.0]]), False
    )
    assert of_layers(low).scales.tolist() == [1.0]
    np.testing.assert_array_equal(of_layers(low).lora_B[0, :, 0, 0], [2, 1])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("llama/saved", "adapter.from=.*: has weights of its own for .*from="),
        ("llama/embedding", "adapter.from=.*: has an adapter for embedding, .* linear maps of the blocks"),
    ],
)
def test_what_a_run_can_not_train_is_refused(case, message):
    with pytest.raises(UserError, match=message):
        adapter_config(ADAPTERS / case, open_source(FIXTURES / "llama"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["adapter.from={peft}", "adapter.rank=8"], "adapter.rank=8: adapter.from=.*/peft sets it. Leave this key out"),
        (["adapter.from={peft}", "adapter.from={peft}"], "adapter.from=.*: is given twice"),
        (["adapter.from={base}"], "/base: has no adapter_config.json; give the folder of an adapter that PEFT saved"),
        (["adapter.from={other}"], "is unknown: .*/base has no such matrix.* The adapter is for another base"),
    ],
)  # fmt: skip
def test_mistakes_of_a_command_line_are_one_line(folder, keys, message, capsys):
    names = {"peft": folder / "peft", "base": folder / "base", "other": ADAPTERS / "gpt2/plain"}
    assert train(folder, "never", *(key.format(**names) for key in keys)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base", "adapter=apart"], "adapter=apart: .*/base has no adapter. Leave this key out"),
        (
            ["lora", "adapter=apart", "dtype=bfloat16"],
            "dtype=bfloat16: adapter=apart writes the adapter alone",
        ),
    ],
)
def test_mistakes_of_an_export_are_one_line(folder, arguments, message, capsys):
    name, *keys = arguments
    assert save([f"{folder}/{name}", f"{folder}/never", *keys]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_base_that_is_no_hugging_face_folder_is_said_to_be_needed(folder):
    lines: list[str] = []
    assert base_name(open_source(folder / "base"), lines.append) == str(folder / "base")
    assert not lines
    assert base_name(open_source(folder / "run"), lines.append) == str(folder / "run")
    assert "is no Hugging Face folder, which PEFT needs: write one with python -m" in lines[0]
