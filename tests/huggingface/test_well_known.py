"""The config.json of well-known models is read completely and gives the published number of parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_jax.huggingface import families
from llm_jax.huggingface.family import family_for, family_names, inexpressible, load_family, read_model
from llm_jax.model.accounting import parameter_count

TREES = json.loads((Path(__file__).parent / "well_known.json").read_text())
BILLIONS = {
    "Llama-3.1-8B": 8.03, "Mistral-7B-v0.1": 7.24, "Qwen2.5-7B": 7.62, "Qwen3-0.6B": 0.60,
    "Qwen3-0.6B-FP8": 0.60, "Qwen3-30B-A3B": 30.5, "Mixtral-8x7B": 46.7, "OLMo-2-1124-7B": 7.30,
    "Gemma-2-9B": 9.24, "Gemma-3-1B": 1.00, "GPT-2": 0.124, "Pythia-2.8B": 2.78, "DeepSeek-R1": 671,
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_its_config_is_read_and_written_and_its_size_is_right(name):
    family, model = read_model(TREES[name], Path(name))
    assert parameter_count(model) / 1e9 == pytest.approx(
        BILLIONS[name], rel=1e-2
    )  # published figures are rounded
    assert inexpressible(family, model) == []
    assert family_for(model, preferred=family.model_type) is family


def test_families_are_found_by_their_files_and_ordered_by_rank():
    names = family_names()
    assert sorted(names) == sorted(
        path.stem for path in Path(families.__path__[0]).glob("*.py") if path.stem != "__init__"
    )
    assert [load_family(name, "test").model_type for name in names] == list(names)
    assert names == (
        "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "olmo2", "gemma2",
        "gemma3_text", "deepseek_v3",
    )  # fmt: skip
    ranks = [load_family(name, "test").rank for name in names]
    assert len(set(ranks)) == len(ranks)  # so that no choice depends on a name
