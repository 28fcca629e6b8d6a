"""A GGUF file is opened as the Hugging Face folder of the same model is: the same configuration and tensors."""

from __future__ import annotations

import contextlib
import json

import ml_dtypes
import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.huggingface.folder import open_folder
from llm_jax.huggingface.gguf.header import KINDS, read_header
from llm_jax.huggingface.gguf.tensor import GgufTensor
from tests.huggingface.gguf_files import MODELS, metadata, stored, write_folder, write_gguf, write_model


@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_the_same_model_as_the_folder_that_it_was_converted_from(tmp_path, name):
    folder = open_folder(write_folder(tmp_path / "folder", name))
    file = open_folder(write_model(tmp_path / "model.gguf", name))
    assert file.model == folder.model
    assert file.tensors.keys() == folder.tensors.keys()
    for part, tensor in folder.tensors.items():
        rows, own = tensor.shape[0], file.tensors[part]
        assert own.shape == tensor.shape
        # 1 + w loses the last bits of a small w
        np.testing.assert_allclose(own.rows(0, rows), tensor.rows(0, rows), rtol=0, atol=1e-7)
        first, end = rows // 3, rows - 1
        assert np.array_equal(own.rows(first, end), own.rows(0, rows)[first:end])


def test_only_gemma_has_one_added_and_only_llama_has_its_rows_in_another_order(tmp_path):
    changed = {}
    for name in MODELS:
        tensors = open_folder(write_model(tmp_path / f"{name}.gguf", name)).tensors.values()
        changed[name] = ({t.interleaved_heads for t in tensors}, {t.added for t in tensors})
    assert changed == {
        name: ({0, 2, 4} if architecture == "llama" else {0}, {0, 1} if "gemma" in name else {0})
        for name, (architecture, _) in MODELS.items()
    }


def test_a_file_in_bfloat16_is_a_model_in_bfloat16(tmp_path):
    arrays = {
        part: array.astype(ml_dtypes.bfloat16) if array.ndim > 1 else array
        for part, array in stored("qwen3").items()
    }
    file = open_folder(write_gguf(tmp_path / "a.gguf", "qwen3", metadata("qwen3"), arrays))
    assert file.model.parameter_dtype == file.model.compute_dtype == "bfloat16"
    embedding = file.tensors["model.embed_tokens.weight"]
    assert np.array_equal(embedding.rows(5, 7), arrays["token_embd.weight"][5:7])


def nibbles(block: np.ndarray) -> np.ndarray:
    return np.concatenate([block & 15, block >> 4]).astype(int)


def half(block: np.ndarray) -> float:
    return float(block.view(np.float16)[0])


def fifth_bits(block: np.ndarray) -> np.ndarray:
    return np.array([int(block.view("<u4")[0]) >> j & 1 for j in range(32)]) << 4


def scale_and_minimum(packed: np.ndarray, j: int) -> tuple[int, int]:
    """The j-th of eight pairs of 6-bit numbers in 12 bytes."""
    packed = packed.astype(int)
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4


def k_block(b: np.ndarray, high: np.ndarray | None, quants: np.ndarray) -> np.ndarray:
    """256 weights of Q4_K or Q5_K: eight groups of 32, each with its scale and minimum."""
    values = []
    for j in range(8):
        scale, minimum = scale_and_minimum(b[4:16], j)
        part = quants[32 * (j // 2) : 32 * (j // 2) + 32].astype(int) >> 4 * (j % 2) & 15
        part = part if high is None else part + (high.astype(int) >> j & 1) * 16
        values.append(half(b) * scale * part - half(b[2:]) * minimum)
    return np.concatenate(values)


def q6_block(b: np.ndarray) -> np.ndarray:
    low, high, scales = b[:128].astype(int), b[128:192].astype(int), b[192:208].view(np.int8).astype(int)
    values = np.empty(256)
    for i in range(256):
        part, group, at = i // 128, i % 128 // 32, i % 32
        four = low[64 * part + 32 * (group % 2) + at] >> 4 * (group // 2) & 15
        two = high[32 * part + at] >> 2 * group & 3
        values[i] = half(b[208:]) * scales[i // 16] * ((four | two << 4) - 32)
    return values


BLOCKS = {
    "Q4_0": lambda b: half(b) * (nibbles(b[2:]) - 8),
    "Q4_1": lambda b: half(b) * nibbles(b[4:]) + half(b[2:]),
    "Q5_0": lambda b: half(b) * ((nibbles(b[6:]) | fifth_bits(b[2:6])) - 16),
    "Q5_1": lambda b: half(b) * (nibbles(b[8:]) | fifth_bits(b[4:8])) + half(b[2:]),
    "Q8_0": lambda b: half(b) * b[2:].view(np.int8).astype(int),
    "Q4_K": lambda b: k_block(b, None, b[16:]),
    "Q5_K": lambda b: k_block(b, b[16:48], b[48:]),
    "Q6_K": q6_block,
}
"""The weights in a block of each kind, after the structs in ggml's ggml-common.h."""


def random_blocks(block_bytes: int, shape: tuple[int, int], scales: slice) -> np.ndarray:
    """Random bytes [rows, bytes of a row] of blocks, with finite numbers where blocks have float16."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (*shape, block_bytes), np.uint8)
    floats = rng.uniform(-0.01, 0.01, (*shape, (scales.stop - scales.start) // 2)).astype(np.float16)
    blocks[..., scales] = floats.view(np.uint8)
    return blocks.reshape(shape[0], -1)


@pytest.mark.parametrize("kind", BLOCKS)
def test_weights_are_dequantised_as_the_format_defines_them(tmp_path, kind):
    block, block_bytes = next((block, size) for name, block, size in KINDS.values() if name == kind)
    floats = {"Q6_K": slice(208, 210), "Q4_0": slice(0, 2), "Q5_0": slice(0, 2), "Q8_0": slice(0, 2)}
    raw = random_blocks(block_bytes, (5, 512 // block), floats.get(kind, slice(0, 4)))
    file = write_gguf(tmp_path / "a.gguf", "llama", {}, {"first": np.ones(3, np.float32), "w": (raw, kind)})
    at = read_header(file).tensors["w"]
    assert (at.kind, at.shape, at.nbytes) == (kind, (5, 512), raw.size)
    tensor = GgufTensor("w", file, "F32", at.shape, at.offset, kind=kind)
    expected = [np.concatenate([BLOCKS[kind](b) for b in row.reshape(-1, block_bytes)]) for row in raw]
    np.testing.assert_allclose(tensor.rows(0, 5), expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(tensor.rows(2, 4), tensor.rows(0, 5)[2:4])


def damaged(path, change) -> None:
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))


def with_version(number: int, order: str = "little"):
    return lambda content: content[:4] + number.to_bytes(4, order) + content[8:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "is empty. Copy or download it again"),
        (lambda content: b"GGML" + content[4:], "begins with b'GGML', not b'GGUF': is no GGUF file"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (with_version(1), "is of version 1 of GGUF; must be one of 2, 3. Convert it anew"),
        (with_version(3, "big"), "is a GGUF file of a big-endian machine"),
        (lambda content: content[:100], "ends inside of its header, at byte 100"),
        (lambda content: content[:-100], "is shorter than its header says"),
        (
            lambda content: content[:8] + b"\xff" * 16 + content[24:],
            "ends inside of its header|UTF-8|twice|type",
        ),
        (lambda content: content[:24] + b"\xff" * 8 + content[32:], "ends inside of its header"),
        (lambda content: content.replace(b"general.name", b"general.tags"), "has the key general.tags twice"),
    ],
)
def test_a_damaged_file_is_refused_with_one_line(tmp_path, change, message):
    file = write_model(tmp_path / "model.gguf", "qwen3")
    damaged(file, change)
    with pytest.raises(UserError, match=message) as error:
        open_folder(file)
    assert str(error.value).startswith(f"{file}: ")


def test_a_file_that_ends_anywhere_is_refused(tmp_path):
    content = write_model(tmp_path / "model.gguf", "qwen3").read_bytes()
    file = tmp_path / "cut.gguf"
    for length in range(0, len(content), 997):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"is empty|ends inside|shorter|no GGUF|version"):
            open_folder(file)


def test_bytes_of_the_header_that_are_flipped_are_read_or_refused(tmp_path):
    content = bytearray(write_model(tmp_path / "model.gguf", "llama").read_bytes())
    rng, file = np.random.default_rng(0), tmp_path / "flipped.gguf"
    for _ in range(300):
        flipped = bytearray(content)
        for at in rng.integers(4, 3000, rng.integers(1, 4)):
            flipped[at] = rng.integers(256)
        file.write_bytes(flipped)
        with contextlib.suppress(UserError):  # any other exception is a fault
            open_folder(file)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("llama", {"general.architecture": "phi3"}, "general.architecture=phi3: is not read; must be one of llama,"),
        ("llama", {"llama.block_count": None}, "llama.block_count is missing from the metadata"),
        ("llama", {"llama.block_count": 2**31 - 1}, "too few for the 2147483647 layers"),
        ("llama", {"llama.block_count": 4}, "the tensor blk.3.attn_q.weight is missing"),
        ("llama", {"llama.block_count": 2}, "has no tensor model.layers.2"),
        ("llama", {"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ("llama", {"llama.expert_count": 8}, "llama.expert_count=8: is not supported"),
        ("llama", {"llama.logit_scale": 2.0}, "llama.logit_scale=2.0: is unknown, and may change"),
        ("llama", {"llama.embedding_length": "32"}, "llama.embedding_length=32: is not supported; must be a whole"),
        ("llama", {"llama.vocab_size": 301}, "llama.vocab_size=301: is not supported; must be 300"),
        ("llama", {"llama.rope.dimension_count": 4}, "llama.rope.dimension_count=4: is not supported; must be 16"),
        ("llama", {"llama.attention.head_count": 5}, "has 64 rows, which are no 5 heads"),
        ("qwen2", {"qwen2.rope.scaling.type": "longrope"}, "qwen2.rope.scaling.type=longrope: is not supported"),
        ("qwen2", {"qwen2.rope.scaling.attn_factor": 2.0}, "attn_factor=2.0: is not supported; must be 1.0"),
        ("qwen2", {"split.count": 3}, "split.count=3: is one of 3 files of a model. Join them"),
        ("qwen3", {"qwen3.feed_forward_length": 64}, "has shape .48, 32., but its metadata requires .64, 32."),
        ("gemma3", {"gemma3.attention.sliding_window": None}, "gemma3.attention.sliding_window is missing"),
        ("gemma3", {"gemma3.attention.sliding_window_pattern": [True]}, "must be a value for each of 7 layers"),
        ("llama", {"tokenizer.ggml.tokens": ["x"] * 301}, "has 301 tokens, more than the 300 rows of token_embd"),
        ("llama", {"general.alignment": 0}, "general.alignment=0: must be a whole number above 0"),
    ],
)  # fmt: skip
def test_metadata_that_is_not_supported_is_refused_by_the_name_of_the_key(tmp_path, name, more, message):
    from llm_jax.pretrained.model import open_model

    file = tmp_path / "model.gguf"
    about = {**metadata(name), **more}
    write_gguf(file, about.pop("general.architecture", MODELS[name][0]), about, stored(name))
    with pytest.raises(UserError, match=message) as error:
        open_model(file, tokenizer=False)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": (np.zeros((2, 84), np.uint8), "Q2_K")}, "w is Q2_K, which isn't read; must be one of F32, F16, Q4_0"),
        ({"w": (np.zeros((2, 136), np.uint8), "IQ4_XS")}, "w is IQ4_XS, which isn't read"),
        ({"w": np.zeros((2, 2), np.int32)}, "w is I32, which isn't read"),
        ({"blk.0.ssm_a.weight": np.ones(2, np.float32)}, "has the tensor blk.0.ssm_a.weight, which llama has no place"),
        ({"rope_freqs.weight": np.ones(8, np.float32) * 3}, "the numbers in rope_freqs.weight are not those of Llama"),
        ({"rope_freqs.weight": np.ones(7, np.float32)}, "rope_freqs.weight has shape .7. in F32; must be .8. in F32"),
        ({"token_embd.weight": np.ones(7, np.float32)}, "has no matrix token_embd.weight"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_supported_are_refused_by_name(tmp_path, tensors, message):
    file = write_gguf(tmp_path / "a.gguf", "llama", metadata("llama"), {**stored("llama"), **tensors})
    with pytest.raises(UserError, match=message):
        open_folder(file)


def test_a_key_that_is_written_as_float32_is_the_decimal_that_was_meant(tmp_path):
    file = open_folder(write_model(tmp_path / "a.gguf", "llama"))
    assert file.tree["rms_norm_eps"] == 1e-5
    assert json.loads(json.dumps(file.tree))["rope_theta"] == 5000.0
