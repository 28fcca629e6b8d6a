"""A model that is loaded and saved has the same bits; transformers (extra `reference`) reads it."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from llm_jax import pretrained
from llm_jax.huggingface import family
from llm_jax.pretrained.model import open_model
from tests.huggingface.expected import CASES, FIXTURES, TOLERANCE


def bits(parameters) -> dict[str, bytes]:
    """The bytes of each array, by its path."""
    return {
        jax.tree_util.keystr(path): np.asarray(array).tobytes()
        for path, array in jax.tree_util.tree_leaves_with_path(parameters)
    }


@pytest.mark.parametrize("name", CASES)
def test_saved_and_loaded_again_every_bit_is_the_same(name, tmp_path):
    opened = open_model(FIXTURES / name, dtype="float32")
    pretrained.save_model(opened, tmp_path / "saved", shard_bytes=50_000)
    again = open_model(tmp_path / "saved", dtype="float32")
    assert again.config == opened.config
    assert bits(again.parameters) == bits(opened.parameters)
    assert (tmp_path / "saved" / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize("name", CASES)
def test_saved_in_the_files_own_dtype_it_holds_the_same_tensors(name, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    kind = json.loads((FIXTURES / name / "config.json").read_text())
    dtype = kind.get("dtype", kind.get("torch_dtype"))
    pretrained.save_model(open_model(FIXTURES / name, dtype="float32"), tmp_path / "saved", dtype=dtype)
    before, after = (
        {
            key: value
            for file in folder.glob("*.safetensors")
            for key, value in safetensors.load_file(file).items()
        }
        for folder in (FIXTURES / name, tmp_path / "saved")
    )
    weights = {
        key: value
        for key, value in before.items()
        if not key.endswith((".attn.bias", ".attention.bias", "masked_bias", "inv_freq"))
    }
    if name == "gpt2_hub":
        weights = {f"transformer.{key}": value for key, value in weights.items()}
    assert sorted(weights) == sorted(after)
    for key, value in weights.items():
        assert value.dtype == after[key].dtype or "e_score" in key
        np.testing.assert_array_equal(value, after[key], err_msg=key)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_without_a_window_in_any_layer_sliding_window_is_still_a_number(name, tmp_path):
    """transformers builds a mask from it whether or not a layer uses it."""
    one, model = family.read_model(json.loads((FIXTURES / name / "config.json").read_text()), FIXTURES / name)
    model = dataclasses.replace(model, window=None, window_layers=None, rope_theta_window=None)
    written = one.write_config(model)
    assert written["sliding_window"] > 0
    assert {*written["layer_types"]} == {"full_attention"}
    assert one.read_config(written, name) == model


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_what_was_saved_and_computes_the_same(name, tmp_path):
    pytest.importorskip("torch", reason="PyTorch and transformers are in the extra reference")
    pytest.importorskip("transformers", reason="PyTorch and transformers are in the extra reference")
    from tools import huggingface_reference as reference

    pretrained.save_model(open_model(FIXTURES / name, dtype="float32"), tmp_path / "saved")
    wanted = np.load(FIXTURES / name / "expected.npz")
    logits = reference.logits(reference.read(tmp_path / "saved"), wanted["full_input_ids"])
    np.testing.assert_allclose(logits, wanted["full_logits"], atol=TOLERANCE, rtol=0)
