"""Checkpoints that were saved from inside a wrapper of torch, and adapters: named, with what to save
instead."""

from __future__ import annotations

import pytest

from llm_jax.core.errors import UserError
from llm_jax.huggingface.folder import open_folder
from llm_jax.pretrained import load_model
from llm_jax.pretrained.source import open_source
from tests.huggingface.test_folder import copied, with_tensors


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            "_orig_mod.{}",
            "torch.compile's _orig_mod. in their names .*Save the state_dict of model._orig_mod",
        ),
        (
            "module.{}",
            "DistributedDataParallel's module. in their names .*Save the state_dict of model.module",
        ),
        ("module._orig_mod.{}", "torch.compile's _orig_mod."),
        ("base_model.model.{}", r"PEFT's base_model.model. in their names .*Save model.merge_and_unload\(\)"),
        (
            "_checkpoint_wrapped_module.{}",
            r"checkpoint_wrapper's _checkpoint_wrapped_module\. .*before it is",
        ),
        ("_fsdp_wrapped_module.{}", "FSDP's _fsdp_wrapped_module. .*Save the full state_dict"),
    ],
)
def test_names_of_a_wrapper_are_named_with_what_to_save(tmp_path, rename, message):
    def change(tensors):
        for name in list(tensors):
            tensors[rename.format(name)] = tensors.pop(name)

    folder = with_tensors(copied("mistral", tmp_path), change)
    with pytest.raises(UserError, match=rf"\d+ of \d+ tensors have {message}") as error:
        open_folder(folder)
    assert "\n" not in str(error.value)


def test_a_wrapper_around_parts_of_a_model_is_named_too(tmp_path):
    """torch.compile of each block."""

    def change(tensors):
        for name in [name for name in tensors if ".0." in name]:
            tensors[name.replace(".0.", ".0._orig_mod.")] = tensors.pop(name)

    with pytest.raises(UserError, match=r"\d+ of \d+ tensors have torch.compile's .*layers.0._orig_mod"):
        open_folder(with_tensors(copied("mistral", tmp_path), change))


def test_a_prefix_of_all_tensors_is_named(tmp_path):
    def change(tensors):
        for name in list(tensors):
            tensors[f"policy.{name}"] = tensors.pop(name)

    with pytest.raises(UserError, match=r"is missing; there is policy\.model\.\S+: rename its tensors"):
        load_model(with_tensors(copied("mistral", tmp_path), change))


@pytest.mark.parametrize("below", ["models--a--b/snapshots/0a1b", "download/Model-7B"])
def test_a_folder_above_a_model_is_refused_with_that_of_the_model(tmp_path, below):
    (folder := tmp_path / below).parent.mkdir(parents=True)
    copied("mistral", tmp_path).rename(folder)
    with pytest.raises(UserError, match=f"is no model's folder; give one in it: {folder}$"):
        open_source(tmp_path / below.split("/")[0])


def test_an_adapter_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(UserError, match=r"is an adapter \(PEFT\), .*merge_and_unload"):
        open_source(tmp_path)
