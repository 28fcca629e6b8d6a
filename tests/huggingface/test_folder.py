"""A folder that describes an unsupported model is refused by the name of the key or tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from llm_jax import pretrained
from llm_jax.core.errors import UserError
from llm_jax.huggingface import family, safetensors, transfer
from llm_jax.huggingface import folder as folder_module
from llm_jax.huggingface.folder import open_folder
from llm_jax.huggingface.tensor_layout import SizedPattern, box_size, parse_pattern, split_box, whole_box
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import preset
from llm_jax.pretrained import load
from llm_jax.pretrained.model import open_model
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import TrainModel

FIXTURES = Path(__file__).parent / "fixtures"
library = pytest.importorskip("safetensors.numpy", reason="safetensors is in the dev extra")


def copied(name: str, folder: Path, **config) -> Path:
    """A fixture with other keys in its config.json; a key that is ... is taken out."""
    copy = Path(shutil.copytree(FIXTURES / name, folder / name))
    tree = json.loads((copy / "config.json").read_text()) | config
    (copy / "config.json").write_text(
        json.dumps({key: value for key, value in tree.items() if value is not ...})
    )
    return copy


def with_tensors(folder: Path, change) -> Path:
    """The folder with other tensors, in one file."""
    tensors = {
        name: array
        for path in folder.glob("*.safetensors")
        for name, array in library.load_file(path).items()
    }
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    change(tensors)
    library.save_file(tensors, folder / "model.safetensors")
    return folder


def parameters(folder: Path, **more) -> dict[str, np.ndarray]:
    """The parameters that are read, by path."""
    return {
        path: np.asarray(array)
        for path, array in transfer.flat_paths(open_model(folder, dtype="float32", **more).parameters).items()
    }


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("llama", "attention_chunk_size", 64, "attention_chunk_size=64: is unknown, and may change"),
        ("llama", "num_atention_heads", 8, "did you mean num_attention_heads?"),
        ("llama", "hidden_act", "relu", "hidden_act=relu: is not supported; must be one of silu"),
        (
            "llama",
            "rope_scaling",
            {"rope_type": "longrope", "factor": 8.0},
            "rope_type=longrope: is not supported",
        ),
        (
            "llama",
            "rope_scaling",
            {"rope_type": "llama3", "factor": 8.0},
            "rope_type=llama3: needs low_freq_factor",
        ),
        (
            "llama",
            "rope_parameters",
            {"rope_theta": 5.0, "rope_type": "llama3"},
            "rope_theta of the rotary embedding is 5.0 in one place",
        ),
        ("llama", "vocab_size", "many", "vocab_size='many': must be a number"),
        ("llama", "num_key_value_heads", "2", "num_key_value_heads='2': must be a whole number, or null"),
        (
            "deepseek_v3",
            "num_key_value_heads",
            2,
            "num_key_value_heads=2: must be num_attention_heads=4 in latent",
        ),
        ("deepseek_v3", "topk_method", "greedy", "topk_method=greedy: is not supported; must be noaux_tc"),
        (
            "llama",
            "rope_scaling",
            {"rope_type": "yarn", "factor": 2.0, "truncate": 1},
            "truncate=1 in the rotary embedding: must be true or false",
        ),
        (
            "gemma2",
            "layer_types",
            ["full_attention"],
            "layer_types=.*: must be full_attention or sliding_attention for each of",
        ),
        ("llama", "rms_norm_eps", -1.0, "model.norm_epsilon=-1.0: must be above 0"),
        ("llama", "is_encoder_decoder", True, "is_encoder_decoder=True: is not supported; must be False"),
        (
            "llama",
            "quantization_config",
            {"quant_method": "gptq"},
            "quantization_config=.*: is not supported; must have quant_method=fp8",
        ),
        (
            "llama",
            "model_type",
            "lama",
            "model_type=lama: there is no such family here; did you mean 'llama'?",
        ),
        ("llama", "model_type", ..., "model_type is missing"),
        (
            "gpt2",
            "scale_attn_by_inverse_layer_idx",
            True,
            "scale_attn_by_inverse_layer_idx=True: is not supported",
        ),
        (
            "gpt2",
            "hidden_size",
            99,
            "n_embd=32 and hidden_size=99: two spellings of one key must have one value",
        ),
        ("qwen3_moe", "num_experts", 99, "two spellings of one key must have one value"),
        ("mixtral", "num_local_experts", 0, "num_local_experts=0: must be above 0"),
        ("mixtral", "sliding_window", "8", "sliding_window='8': must be a whole number, or null"),
        (
            "gemma3",
            "attn_logit_softcapping",
            3.0,
            "attn_logit_softcapping=3.0: is not supported; must be null",
        ),
        ("gemma3", "final_logit_softcapping", "3", "final_logit_softcapping='3': must be a number, or null"),
        (
            "gemma3",
            "rope_parameters",
            {"full_attention": 5},
            "rope_parameters.full_attention: must be full_attention or",
        ),
        (
            "llama",
            "rope_scaling",
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1.5},
            "=1.5: must be a whole number",
        ),
        ("qwen3_moe", "decoder_sparse_step", 0, "decoder_sparse_step=0: must be above 0"),
        ("qwen3_moe", "mlp_only_layers", 3, "mlp_only_layers=3: must be an array, or null"),
        ("gemma2", "query_pre_attn_scalar", 0, "query_pre_attn_scalar=0.0: must be above 0"),
        (
            "llama",
            "partial_rotary_factor",
            0.5,
            "partial_rotary_factor=0.5 in the rotary embedding: is not supported for this family",
        ),
        ("llama", "rotary_emb_base", 500.0, "rotary_emb_base=500.0: is unknown"),
        (
            "llama",
            "rope_scaling",
            {"type": "linear", "rope_type": "yarn", "factor": 2.0},
            "rope_type of the rotary embedding is linear in one place",
        ),
        (
            "llama",
            "rope_scaling",
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
            "high_frequency_factor=4.0: must be above low_frequency_factor=4",
        ),
        (
            "llama",
            "rope_scaling",
            {"rope_type": "linear", "factor": "2"},
            "factor=2 in the rotary embedding: must be a number",
        ),
        (
            "llama",
            "original_max_position_embeddings",
            99,
            "original_max_position_embeddings=99: is 16 in the rotary embedding",
        ),
    ],
)
def test_a_key_that_changes_the_model_and_is_not_supported_is_named(tmp_path, name, key, value, message):
    with pytest.raises(UserError, match=message) as error:
        open_folder(copied(name, tmp_path, **{key: value}))
    assert "\n" not in str(error.value)


def test_keys_without_effect_are_accepted(tmp_path):
    folder = copied(
        "llama",
        tmp_path,
        attention_dropout=0.1,
        use_cache=False,
        auto_map={},
        some_new_key=None,
        is_decoder=True,
        temperature=0.7,
    )
    assert open_folder(folder).model == open_folder(FIXTURES / "llama").model


def test_a_number_that_happens_to_be_whole_is_written_as_transformers_takes_it(tmp_path):
    one, model = family.read_model(
        json.loads((copied("deepseek_v3", tmp_path, routed_scaling_factor=2) / "config.json").read_text()),
        tmp_path,
    )
    assert repr(one.write_config(model)["routed_scaling_factor"]) == "2.0"
    one, model = family.read_model(
        json.loads((copied("gemma2", tmp_path, final_logit_softcapping=30) / "config.json").read_text()),
        tmp_path,
    )
    assert repr(one.write_config(model)["final_logit_softcapping"]) == "30.0"


def test_keys_that_are_missing_have_the_classs_defaults(tmp_path):
    folder = copied(
        "mistral",
        tmp_path,
        **dict.fromkeys(
            ("sliding_window", "rms_norm_eps", "rope_theta", "rope_parameters", "tie_word_embeddings"), ...
        ),
    )
    model = open_folder(folder).model
    assert (model.window, model.norm_epsilon, model.rope_theta, model.tied_embeddings) == (
        4096,
        1e-6,
        10000.0,
        False,
    )


def test_tensors_that_are_missing_too_many_or_of_another_shape_are_named(tmp_path):
    cases = {
        "the tensor model.norm.weight, which its config.json requires, is missing": lambda tensors: (
            tensors.pop("model.norm.weight")
        ),
        "the model that its config.json describes has no tensor model.extra.weight": lambda tensors: (
            tensors.update({"model.extra.weight": np.ones(3, np.float32)})
        ),
        r"model.norm.weight has shape \[3\], but its config.json requires \[32\]": lambda tensors: (
            tensors.update({"model.norm.weight": np.ones(3, np.float32)})
        ),
        "model.norm.weight is I32; must be one of": lambda tensors: tensors.update(
            {"model.norm.weight": np.ones(32, np.int32)}
        ),
    }
    for i, (message, change) in enumerate(cases.items()):
        with pytest.raises(UserError, match=message):
            open_model(with_tensors(copied("mistral", tmp_path / str(i)), change))


def test_buffers_of_old_files_are_passed_over_and_other_tensors_only_by_name(tmp_path):
    def change(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
        tensors["model.layers.9.eh_proj.weight"] = np.ones(4, np.float32)

    folder = with_tensors(copied("mistral", tmp_path), change)
    with pytest.raises(
        UserError, match=r"has no tensor model.layers.9.eh_proj.weight\. To load it without, give leave_out="
    ):
        open_model(folder)
    assert open_model(folder, leave_out=["model.layers.9.*"]).step == 0
    assert open_folder(folder, ["model.layers.9.*"]).left_out == ("model.layers.9.eh_proj.weight",)
    with pytest.raises(UserError, match=r"leave_out=model.layers.8.\*: .* has no such tensor"):
        open_folder(folder, ["model.layers.9.*", "model.layers.8.*"])
    with pytest.raises(
        UserError,
        match=r"the tensor model.layers.0.input_layernorm.weight, which its config.json requires, is missing",
    ):
        open_model(folder, leave_out=["model.layers.*norm.weight", "model.layers.9.*"])


def test_a_tied_head_that_is_in_the_file_too_must_be_the_embedding(tmp_path):
    name = "qwen3"
    assert open_folder(FIXTURES / name).model.tied_embeddings

    def twice(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    def other(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    def only_as_head(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    for change in twice, only_as_head:
        folder = with_tensors(copied(name, tmp_path / change.__name__), change)
        np.testing.assert_array_equal(
            parameters(folder)["embedding"], parameters(FIXTURES / name)["embedding"]
        )
    with pytest.raises(
        UserError,
        match=r"tie_word_embeddings=true, but lm_head.weight differs from model.embed_tokens.weight",
    ):
        open_model(with_tensors(copied(name, tmp_path / "other"), other))


def test_truncated_and_missing_files_are_refused_with_the_reason(tmp_path):
    folder = copied("mistral", tmp_path)
    file = folder / "model.safetensors"
    whole_file = file.read_bytes()
    for content, message in (
        (whole_file[:-5], "is shorter than its header says"),
        (whole_file + b"more", "is longer than its header says"),
        (b"hello", "is not a safetensors file"),
        (
            with_header(whole_file, "model.norm.weight", shape=[16]),
            r"model.norm.weight has 128 bytes, but \[16\] in F32 takes 64",
        ),
        (
            with_header(whole_file, "model.norm.weight", data_offsets=[0, 128]),
            "begins at byte .*, but the tensor before it ends at",
        ),
        (
            with_header(whole_file, "model.norm.weight", data_offsets=[128]),
            "model.norm.weight is not a tensor in its header",
        ),
        (
            with_header(whole_file, "model.norm.weight", shape="32"),
            "model.norm.weight is not a tensor in its header",
        ),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            open_folder(folder)
    file.rename(folder / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"has no model.safetensors and no .*; there is pytorch_model.bin, which is not read"
    ):
        open_folder(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no run folder"):
        open_model(tmp_path / "empty")


def with_header(content: bytes, name: str, **about) -> bytes:
    """A safetensors file whose header has other values for one tensor."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header[name] |= about
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[end:]


def test_of_one_file_and_an_index_of_others_none_is_taken_in_silence(tmp_path):
    folder = copied("llama", tmp_path)
    shutil.copy(FIXTURES / "mistral" / "model.safetensors", folder)
    with pytest.raises(
        UserError, match=r"has model.safetensors, but model.safetensors.index.json names other files"
    ):
        open_folder(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"model.safetensors.index.json: has no weight_map"):
        open_folder(folder)


def test_an_unsupported_tokenizer_is_logged_and_does_not_prevent_loading_the_model(tmp_path):
    folder, lines = copied("gpt2", tmp_path), []
    (folder / "vocab.json").write_text("{}")
    assert open_model(folder, log=lines.append).tokenizer_if_any is None
    assert len(lines) == 1
    assert "the tokenizer in vocab.json is not read; put a tokenizer.json there" in lines[0]
    (folder / "tokenizer.json").write_text('{"model": {"type": "WordLevel"}}')
    with pytest.raises(UserError, match=r"tokenizer.json can't be read"):
        open_model(folder)
    assert pretrained.load_model(folder).config.vocab == 83


def test_what_the_index_names_must_be_there(tmp_path):
    folder = copied("llama", tmp_path)
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()
    with pytest.raises(UserError, match=r"model-00001-of-00003.safetensors: there is no such file"):
        open_folder(folder)


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_weights_of_any_float_dtype_are_read_as_they_are(tmp_path, kind):
    def change(tensors):
        for name, array in tensors.items():
            tensors[name] = array.astype(kind)

    read, before = (
        parameters(with_tensors(copied("mistral", tmp_path), change)),
        parameters(FIXTURES / "mistral"),
    )
    for path, array in read.items():
        np.testing.assert_array_equal(array, before[path].astype(kind).astype(np.float32), err_msg=path)


def test_8_bit_weights_are_multiplied_by_the_scales_of_their_blocks(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((200, 300)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.random((2, 3)).astype(np.float32) + 0.5
    planned = [safetensors.PlannedTensor("w_scale_inv", "float32", scale.shape)]
    header = {
        "w": {"dtype": "F8_E4M3", "shape": [200, 300], "data_offsets": [0, 60000]},
        "w_scale_inv": {"dtype": "F32", "shape": [2, 3], "data_offsets": [60000, 60000 + planned[0].nbytes]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + weight.tobytes() + scale.tobytes()
    )
    tensors = safetensors.read_folder(tmp_path)
    assert list(tensors) == ["w"]
    expected = weight.astype(np.float32) * np.kron(scale, np.ones((128, 128), np.float32))[:200, :300]
    np.testing.assert_array_equal(tensors["w"].rows(0, 200), expected)
    np.testing.assert_array_equal(
        tensors["w"].rows(100, 150), expected[100:150]
    )  # across the boundary of two blocks


SIZES = {"single": {}, "fsdp_tensor": {"data": 2, "tensor": 2}, "pipeline": {"stage": 3, "data": 1}}


def test_a_model_with_8_bit_weights_is_that_of_the_numbers_that_they_stand_for(tmp_path):
    scales = {}

    def quantised(tensors):
        for name in [name for name in tensors if "_proj.weight" in name]:
            scales[name] = np.float32(np.abs(tensors[name]).max() / 448)  # the largest number of E4M3
            tensors[name] = (tensors[name] / scales[name]).astype(ml_dtypes.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = np.full((1, 1), scales[name])

    def restored(tensors):
        quantised(tensors)
        for name, scale in scales.items():
            tensors[name] = tensors[name].astype(np.float32) * scale
            del tensors[f"{name}_scale_inv"]

    quantisation = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    in_8_bits = with_tensors(copied("mistral", tmp_path / "8", quantization_config=quantisation), quantised)
    expected = parameters(with_tensors(copied("mistral", tmp_path / "32"), restored))
    for path, array in parameters(in_8_bits).items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)


@pytest.mark.parametrize("layout", SIZES)
def test_however_small_the_chunks_the_weights_are_the_same_on_any_layout(layout):
    folder = open_folder(FIXTURES / "mixtral")
    place = MeshPlacement(preset(layout), make_mesh(preset(layout), SIZES[layout]))
    program = TrainModel(folder.model, OptimizerConfig(), place)
    tensor_map = folder.tensor_map(program)
    read = transfer.flat_paths(
        transfer.read_parameters(tensor_map, folder.tensors, program, chunk_bytes=3000)
    )
    shardings = transfer.flat_paths(program.shardings("stored"))
    for path, expected in parameters(FIXTURES / "mixtral").items():
        assert read[path].sharding == shardings[path]
        np.testing.assert_array_equal(read[path], expected, err_msg=path)


def test_a_pattern_is_read_and_written_in_any_part():
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal((4 * 3 * 6, 5))
    order = ("k", (0, 2, 4, 1, 3, 5))
    pattern = SizedPattern(parse_pattern("(h p k) d -> d h k"), (5, 4, 6), part=1, parts=3, order=order)
    array = tensor.reshape(4, 3, 6, 5)[:, 1].transpose(2, 0, 1)[..., [0, 2, 4, 1, 3, 5]]
    assert pattern.tensor_shape == tensor.shape
    box = (slice(1, 4), slice(2, 3), slice(1, 5))
    np.testing.assert_array_equal(pattern.read(lambda a, b: tensor[a:b], box), array[box])
    back = np.zeros_like(tensor)
    pattern.write(array.transpose(pattern.permutation), back)
    np.testing.assert_array_equal(back.reshape(4, 3, 6, 5)[:, 1], tensor.reshape(4, 3, 6, 5)[:, 1])
    assert not back.reshape(4, 3, 6, 5)[:, [0, 2]].any()
    chunks = np.full_like(tensor, -1)
    for start, end in pattern.row_ranges(max_size=2 * 3 * 6 * 5):
        part, array_box = pattern.restricted(start, end)
        part.write(array[array_box].transpose(part.permutation), chunks[start * 18 : end * 18])
    np.testing.assert_array_equal(chunks.reshape(4, 3, 6, 5)[:, 1], tensor.reshape(4, 3, 6, 5)[:, 1])
    boxes = split_box(whole_box((5, 4, 6)), [1, 2], 13)
    assert max(box_size(b) for b in boxes) <= 13 or max(b[0].stop for b in boxes) == 5
    assert sum(box_size(b) for b in boxes) == 120


def test_opening_a_model_reads_its_config_and_headers_once(tmp_path, monkeypatch):
    counts: dict[str, int] = {}
    for module, name in ((folder_module, "read_json"), (safetensors, "read_header")):
        original = getattr(module, name)

        def counting(path, original=original):
            counts[path.name] = counts.get(path.name, 0) + 1
            return original(path)

        monkeypatch.setattr(module, name, counting)
    load.write_run(open_model(FIXTURES / "olmo2"), tmp_path / "run")
    assert counts == {"config.json": 1, "model.safetensors": 1}
    pretrained.save_model(open_model(tmp_path / "run"), tmp_path / "out")
    assert counts == {"config.json": 2, "model.safetensors": 2}
