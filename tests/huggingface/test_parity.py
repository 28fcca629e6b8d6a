"""Models of every family compute the float32 logits of transformers, which `fixtures` has (no PyTorch)."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from llm_jax import pretrained
from llm_jax.core.errors import UserError
from llm_jax.huggingface import family
from llm_jax.layout.presets import preset
from tests.huggingface import expected
from tests.huggingface.expected import CASES, FIXTURES, TOLERANCE, Batch


@functools.cache
def computed(folder: Path, expectation: Path) -> tuple[Batch, np.ndarray]:
    """(the batch with what transformers computes, the logits of the loaded model)."""
    batch = expected.read(expectation)
    return batch, expected.run(pretrained.load_model(folder, dtype="float32"), batch)


@pytest.fixture(
    params=[
        *CASES,
        *(f"shared/{name}" for name in ("gpt2", "llama", "mistral", "olmo2", "qwen3", "qwen3_moe")),
    ]
)
def case(request) -> tuple[Batch, np.ndarray]:
    name: str = request.param
    if name.startswith("shared/"):
        folder = (
            request.getfixturevalue("shared") / "huggingface" / "reference" / name.removeprefix("shared/")
        )
        return computed(folder, folder / "ref.npz")
    return computed(FIXTURES / name, FIXTURES / name / "expected.npz")


def test_logits_of_texts_longer_than_any_window(case):
    assert expected.furthest(*case, "full") < TOLERANCE


def test_padding_on_either_side_changes_nothing(case):
    assert expected.furthest(*case, "left", "right") < TOLERANCE


def test_documents_packed_in_a_row_are_as_each_alone(case):
    assert expected.furthest(*case, "packed") < TOLERANCE


def test_greedy_continuation_is_the_same(case):
    batch, logits_BTV = case
    np.testing.assert_array_equal(expected.continues(batch, logits_BTV), batch.new)


SECOND = (
    "gpt2_hub",
    "gpt_neox_hub",
    "llama_bias_tied",
    "qwen2_tied",
    "qwen3_moe_step",
    "deepseek_v3_noqlora",
)  # further cases of a family


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SECOND else n for n in CASES]
)
def test_split_over_eight_devices_it_computes_the_same(name):
    batch = expected.read(FIXTURES / name / "expected.npz")
    model = pretrained.load_model(
        FIXTURES / name, dtype="float32", layout=preset("fsdp_tensor"), mesh={"data": 4, "tensor": 2}
    )
    assert model.place.mesh.size == 8
    assert expected.furthest(batch, expected.run(model, batch), "full", "left", "packed") < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_both_spellings_of_a_configuration_are_the_same_model(name):
    trees = [
        json.loads((FIXTURES / name / file).read_text()) for file in ("config.json", "config.other.json")
    ]
    (one, first), (other, second) = (family.read_model(tree, FIXTURES / name) for tree in trees)
    assert one is other
    assert first == second


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"num_hidden_layers": None}, "num_hidden_layers=null: must be a number"),
        ("gemma3", {"query_pre_attn_scalar": None}, "query_pre_attn_scalar=null: must be a number"),
        ("gpt_neox", {"use_parallel_residual": None}, "use_parallel_residual=null: must be true or false"),
        ("qwen2", {"rope_scaling": 4}, "rope_scaling=4: must be an object, or null"),
        (
            "mistral",
            {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
            "rope_theta=null in the rotary embedding: must be a number",
        ),
        ("gemma2", {"sliding_window": None}, "layers .0, 2. are sliding_attention, but no sliding_window"),
    ],
)
def test_a_null_where_a_value_is_required_is_refused_by_name(name, change, message):
    tree = json.loads((FIXTURES / name / "config.json").read_text())
    with pytest.raises(UserError, match=message):
        family.read_model({**tree, **change}, FIXTURES / name)
