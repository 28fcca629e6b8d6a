"""Adapters in PEFT folders compute what PEFT computes (`adapters` has its logits), and are written as they were
read; what isn't supported, or doesn't fit the base, is refused in one line.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax import huggingface
from llm_jax.core.errors import UserError
from llm_jax.huggingface.peft import WEIGHTS, Base, LowRank, PeftAdapter, read_peft
from llm_jax.huggingface.peft_config import NAME, UNSUPPORTED, read_config
from llm_jax.huggingface.peft_map import matrices
from llm_jax.huggingface.peft_write import made_here, write_peft
from llm_jax.huggingface.safetensors import NAMES, PlannedTensor, read_header, write_header
from llm_jax.huggingface.transfer import flat_paths
from llm_jax.layout.presets import preset
from llm_jax.pretrained.adapter import base_of
from llm_jax.pretrained.model import PretrainedModel, open_model
from llm_jax.pretrained.source import open_source, tokenizer_folder
from llm_jax.train.state import TrainModel
from tests.huggingface.expected import FIXTURES

ADAPTERS = Path(__file__).parent / "adapters"
LIKE_LLAMA = ("qwen2", "qwen3", "qwen3_moe", "gemma2", "olmo2", "mistral")
"""Bases whose adapters show nothing that those of llama, gemma3 and mixtral don't."""
CASES = [
    pytest.param(name, marks=pytest.mark.slow) if name.split("/")[0] in LIKE_LLAMA else name
    for name in sorted(f"{path.parent.name}/{path.name}" for path in ADAPTERS.glob("*/*"))
]
TOLERANCE = 1e-4
"""Absolute, of float32 logits with a standard deviation of 1 to 5. The largest difference is that of PiSSA,
whose singular value decomposition PEFT computes in float32: 9e-5; of all others it is 2e-5."""


@functools.cache
def base_model(name: str) -> PretrainedModel:
    """A base in float32."""
    return open_model(FIXTURES / name, dtype="float32", tokenizer=False)


@functools.cache
def forward(name: str, tied: bool):
    """(parameters, tokens) → logits of a model of a base's shape, compiled once for all its adapters."""
    program = program_of(name, tied)
    return jax.jit(lambda parameters, tokens: program.model(parameters)(tokens))


@functools.cache
def program_of(name: str, tied: bool) -> TrainModel:
    base = base_model(name)
    config = dataclasses.replace(base.config, tied_embeddings=tied)
    return TrainModel(config, base.experiment.optimizer, base.place)


def as_base(model: PretrainedModel) -> Base:
    return base_of(open_source(model.path))


def adapted(case: str) -> tuple[PretrainedModel, np.ndarray]:
    """The merged model of a case, and its logits of the fixture's tokens."""
    name = case.split("/")[0]
    model = open_model(FIXTURES / name, dtype="float32", tokenizer=False, adapter=ADAPTERS / case)
    tokens = jnp.asarray(np.load(ADAPTERS / case / "expected.npz")["tokens"])
    with jax.set_mesh(model.place.mesh):
        return model, np.asarray(forward(name, model.config.tied_embeddings)(model.parameters, tokens))


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_of_peft_computes_pefts_logits(case):
    _, logits = adapted(case)
    assert np.abs(logits - np.load(ADAPTERS / case / "expected.npz")["logits"]).max() < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_read_and_written_again_both_files_have_the_same_bytes(case, tmp_path):
    base = base_model(case.split("/")[0])
    peft = as_base(base)
    write_peft(read_peft(ADAPTERS / case, peft), peft, tmp_path)
    for file in (NAME, WEIGHTS):
        assert (tmp_path / file).read_bytes() == (ADAPTERS / case / file).read_bytes()


def test_the_loader_takes_an_adapter():
    case = "gpt2/plain"
    model = huggingface.load_model(FIXTURES / "gpt2", dtype="float32", adapter=ADAPTERS / case)
    expected = np.load(ADAPTERS / case / "expected.npz")
    logits = jax.jit(lambda tokens: model(tokens))(jnp.asarray(expected["tokens"]))
    assert np.abs(np.asarray(logits) - expected["logits"]).max() < TOLERANCE


def test_merged_over_eight_devices_the_weights_are_the_same():
    case = "mixtral/all"
    whole, _ = adapted(case)
    layout = {"layout": preset("fsdp_tensor"), "mesh": {"data": 4, "tensor": 2}}
    split = open_model(
        FIXTURES / "mixtral", dtype="float32", tokenizer=False, adapter=ADAPTERS / case, **layout
    )
    for name, array in flat_paths(split.parameters).items():
        np.testing.assert_allclose(array, flat_paths(whole.parameters)[name], rtol=0, atol=1e-6)


def test_a_merged_model_in_bfloat16_is_the_merged_one_in_float32_rounded():
    case = "llama/plain"
    wide, _ = adapted(case)
    narrow = open_model(FIXTURES / "llama", dtype="bfloat16", tokenizer=False, adapter=ADAPTERS / case)
    for name, array in flat_paths(narrow.parameters).items():
        np.testing.assert_array_equal(array, flat_paths(wide.parameters)[name].astype(jnp.bfloat16))


def test_modules_that_peft_adapts_by_default_need_not_be_named(tmp_path):
    folder = changed("gpt2/plain", tmp_path, target_modules=None)
    base = as_base(base_model("gpt2"))
    assert read_peft(folder, base).low_rank.keys() == read_peft(ADAPTERS / "gpt2/plain", base).low_rank.keys()


def random_low_rank(base: Base, rank: int, seed: int) -> dict[str, LowRank]:
    """An adapter on every matrix, as if it had been trained here: each array has its own A."""
    rng, found = np.random.default_rng(seed), {}
    for matrix in matrices(base.tensor_map(), separate=False):
        for part in matrix.parts:
            if matrix.kind not in ("linear", "parameter") or part.path in found:
                continue
            stack = base.shapes[part.path][: len(part.prefix)]
            A, B = (
                0.2 * rng.standard_normal((*stack, *part.pattern(factor, rank).shape)).astype(np.float32)
                for factor in ("lora_A", "lora_B")
            )
            found[part.path] = LowRank(A, B, np.full(stack, rank), np.full(stack, 3.0), rslora=seed % 2 == 1)
    return found


def products(low_rank: dict[str, LowRank], base: Base) -> dict[str, np.ndarray]:
    """scale A B of each array; the scale of a layer without an adapter is 0."""
    found = {}
    for path, low in low_rank.items():
        batch = low.lora_A.ndim + low.lora_B.ndim - 2 - len(base.shapes[path])
        lead = low.lora_A.shape[:batch]
        A = low.lora_A.reshape(*lead, -1, low.lora_A.shape[-1])
        product = A @ low.lora_B.reshape(*lead, A.shape[-1], -1)
        along = low.scales.reshape(*low.scales.shape, *[1] * (product.ndim - low.scales.ndim))
        found[path] = (along * product).reshape(base.shapes[path])
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "deepseek_v3", "mixtral"])
def test_an_adapter_made_here_is_read_from_its_folder_with_the_same_products(name, tmp_path):
    base = as_base(base_model(name))
    low_rank = random_low_rank(base, rank=2, seed=len(name))
    for path in ("blocks.attention.out", "blocks.attention.query", "blocks.mlp.gate"):
        if path in low_rank:  # a layer without an adapter, also of a part of a fused matrix
            low_rank[path].ranks[1] = 0
    low_rank["blocks.attention.out"].alphas[0] = 5.0
    write_peft(made_here(low_rank, base, "the/base"), base, tmp_path)
    again = read_peft(tmp_path, base)
    assert again.config.base == "the/base"
    wanted, found = products(low_rank, base), products(again.low_rank, base)
    assert wanted.keys() == found.keys()
    for path in wanted:
        np.testing.assert_allclose(found[path], wanted[path], atol=1e-6, err_msg=path)


def test_its_config_has_the_shortest_names():
    base = as_base(base_model("gpt2"))
    low_rank = random_low_rank(base, rank=2, seed=0)
    del low_rank["blocks.mlp.down"]
    tree = made_here(low_rank, base, "x").tree
    assert tree["target_modules"] == ["attn.c_proj", "c_attn", "c_fc"]  # not mlp.c_proj
    assert tree["rank_pattern"].keys() == {
        f"transformer.h.{i}.attn.c_attn" for i in range(3)
    }  # 3 arrays, 3 A
    assert tree["fan_in_fan_out"] is True


def changed(case: str, tmp_path: Path, **config: Any) -> Path:
    """A copy of a fixture with other values in its adapter_config.json."""
    shutil.copytree(ADAPTERS / case, tmp_path / "adapter")
    file = tmp_path / "adapter" / NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return tmp_path / "adapter"


def with_tensors(folder: Path, change) -> Path:
    """The folder with tensors that `change` made of its own, by name."""
    tensors = {
        name: tensor.rows(0, tensor.shape[0]).reshape(tensor.shape)
        for name, tensor in read_header(folder / WEIGHTS).items()
    }
    tensors = change(tensors)
    names = {short: name for name, short in NAMES.items()}
    with (folder / WEIGHTS).open("wb") as file:
        write_header(file, [PlannedTensor(n, names["F32"], t.shape) for n, t in tensors.items()])
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor, np.float32).tobytes())
    return folder


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
SWITCHES = {
    name: True if False in off else [7] if "tokens" in name or "indices" in name else {"nblocks": 2}
    for name, off in UNSUPPORTED.items()
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        *(({name: value}, f"{name}=.*: is not supported; merge the adapter with PEFT") for name, value in SWITCHES.items()),
        ({"sparkle": 3}, "sparkle=3: is unknown, and may change what the model computes"),
        ({"use_dorra": True}, "use_dorra=True: is unknown, .*; did you mean use_dora"),
        ({"peft_type": "LOHA"}, "peft_type=LOHA: is not supported; must be LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type=SEQ_CLS: is not supported; must be CAUSAL_LM"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights=loftq: is not supported"),
        ({"init_lora_weights": "eva"}, "init_lora_weights=eva: is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4: .*path_initial_model_for_weight_conversion"),
        ({"r": 0}, "r=0: must be a whole number above 0"),
        ({"r": 2**40}, "r=1099511627776: must be below 2"),
        ({"lora_alpha": "16"}, "lora_alpha='16': must be a number"),
        ({"rank_pattern": {"q_proj": 1.5}}, "rank_pattern.q_proj=1.5: must be a whole number above 0"),
        ({"target_modules": "(q_proj"}, "is no regular expression"),
        ({"target_modules": [3]}, "target_modules=.3.: must be a list of names"),
        ({"layers_to_transform": "1"}, "layers_to_transform=1: must be a number, or a list of them"),
        ({"bias": "some"}, "bias=some: is not supported; must be one of none, all, lora_only"),
        ({"r": 3}, "lora_A.weight has shape .4, 32., and a rank of 3 and .*llama require .3, 32.. The adapter is for another base"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "k_proj.lora_A.weight, which its .* requires .* is missing"),
        ({"target_modules": ["v_proj"]}, "q_proj.lora_A.weight is unknown: its .* has no adapter"),
        ({"use_dora": True}, "lora_magnitude_vector, which its adapter_config.json requires"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_its_key(config, message, tmp_path):
    folder = changed("llama/plain", tmp_path, **config)
    with pytest.raises(UserError, match=message) as error:
        read_peft(folder, as_base(base_model("llama")))
    assert "\n" not in str(error.value)


def test_an_adapter_for_another_base_is_refused():
    with pytest.raises(
        UserError,
        match=r"layers.0.*is unknown: gpt2 has no such matrix. The adapter is for another base .fixtures/llama.",
    ):
        read_peft(ADAPTERS / "llama/layers", dataclasses.replace(as_base(base_model("gpt2")), where="gpt2"))
    with pytest.raises(
        UserError,
        match=r"q_proj.lora_B.weight has shape .32, 4., .* require .48, 4.. The adapter is for another base",
    ):
        read_peft(ADAPTERS / "llama/plain", as_base(base_model("mistral")))


def test_tensors_that_are_unknown_or_damaged_are_refused(tmp_path):
    base = as_base(base_model("llama"))
    folder = with_tensors(
        changed("llama/plain", tmp_path),
        lambda tensors: {**tensors, f"{Q_PROJ}.lora_C.weight": np.ones((2, 2), np.float32)},
    )
    with pytest.raises(
        UserError, match=r"q_proj.lora_C.weight is unknown: its adapter_config.json has no adapter"
    ):
        read_peft(folder, base)
    (folder / WEIGHTS).write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="is not a safetensors file"):
        read_peft(folder, base)
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"has no adapter_model.safetensors .adapter_model.bin, a pickle, is not read."
    ):
        read_peft(folder, base)
    (folder / WEIGHTS).symlink_to(FIXTURES / "llama" / "config.json")
    with pytest.raises(UserError, match=r"is a symbolic link to .*, outside of its folder"):
        read_peft(folder, base)


def test_pissa_of_a_tied_head_is_refused(tmp_path):
    folder = changed(
        "llama_bias_tied/biases", tmp_path, init_lora_weights="pissa", bias="none", target_modules=["lm_head"]
    )
    A, B = (f"base_model.model.lm_head.lora_{side}.weight" for side in "AB")
    with_tensors(folder, lambda tensors: {A: np.ones((2, 32)), B: np.ones((83, 2))})
    with pytest.raises(UserError, match="init_lora_weights=pissa of lm_head: the head is the embedding too"):
        open_model(FIXTURES / "llama_bias_tied", dtype="float32", tokenizer=False, adapter=folder)


def test_a_peft_folder_is_opened_with_the_base_that_it_names(tmp_path):
    folder = changed("llama/saved", tmp_path, base_model_name_or_path=str(FIXTURES / "llama"))
    model, wanted = open_model(folder, dtype="float32", tokenizer=False), adapted("llama/saved")[0]
    for name, array in flat_paths(model.parameters).items():
        np.testing.assert_array_equal(array, flat_paths(wanted.parameters)[name])
    assert tokenizer_folder(folder) == FIXTURES / "llama"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/model", "is an adapter .PEFT., and its base org/model is no folder here. Give that model's folder with adapter="),
        (None, "is an adapter .PEFT., and doesn't name the model that it changes"),
    ],
)  # fmt: skip
def test_without_its_base_a_peft_folder_is_refused(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        open_source(changed("llama/plain", tmp_path, base_model_name_or_path=name))


def test_the_shortest_config_has_pefts_defaults():
    config = read_config({"target_modules": ["q_proj"], "peft_type": "LORA"}, "x")
    assert (config.rank, config.alpha, config.rslora, config.dora, config.whole) == (8, 8.0, False, False, ())
    assert not PeftAdapter(config, {}).unties
