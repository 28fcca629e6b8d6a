"""The scaling of rotary embeddings in a GGUF file, as `rope_scaling` of a config.json."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.huggingface.gguf.metadata import MetadataReader
from llm_jax.model.config_parts import RopeScaling
from llm_jax.model.norm_and_rope import rope_frequencies

FREQUENCIES = "rope_freqs.weight"
"""A tensor with the number that each frequency is divided by: all that files have of Llama 3's scaling."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The settings of Llama 3.1, 3.2 and 3.3, which differ in `factor` only."""
INERT = ("rope.scaling.finetuned",)
NEUTRAL = {
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
}
"""Keys that may change what is computed, and the values with which they don't."""


def read_scaling(reader: MetadataReader, head_dim: int) -> dict[str, Any] | None:
    """`rope_scaling` of a config.json; None where nothing is scaled. Raises UserError for a kind that isn't
    supported."""
    kind = reader.choice("rope.scaling.type", {"none": "", "linear": "linear", "yarn": "yarn"}, "none")
    for name in INERT:
        reader.take(name)
    for name, value in NEUTRAL.items():
        reader.require(name, value)
    old = reader.take("rope.scale_linear")
    if FREQUENCIES in reader.header.tensors:
        if kind:
            raise reader.wrong("rope.scaling.type", kind, f"none: the file has {FREQUENCIES} too")
        return llama3_scaling(reader, head_dim)
    if not kind:
        reader.require("rope.scaling.factor", 0.0, 1.0)
        factor = 1.0 if old is None else reader.number("rope.scale_linear")
        return None if factor == 1 else {"rope_type": "linear", "factor": factor}
    scaling: dict[str, Any] = {"rope_type": kind, "factor": reader.number("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = reader.whole("rope.scaling.original_context_length")
        for key, name in {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}.items():
            if reader.take(f"rope.scaling.{name}") is not None:
                scaling[key] = reader.number(f"rope.scaling.{name}")
    else:
        reader.take("rope.scaling.original_context_length")  # is for the reader of the file
    return scaling


def llama3_scaling(reader: MetadataReader, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling, from the numbers that frequencies are divided by. Raises UserError for numbers that
    no model of Meta's has."""
    path, stored = reader.header.path, reader.header.tensors[FREQUENCIES]
    if stored.kind != "F32" or stored.shape != (head_dim // 2,):
        raise UserError(
            f"{path}: {FREQUENCIES} has shape {list(stored.shape)} in {stored.kind}; must be "
            f"[{head_dim // 2}] in F32"
        )
    divisors = np.fromfile(path, np.float32, head_dim // 2, offset=stored.offset)
    factor = float(divisors.max(initial=1))
    scaling = RopeScaling(
        kind="llama3",
        factor=factor,
        low_frequency_factor=LLAMA3["low_freq_factor"],
        high_frequency_factor=LLAMA3["high_freq_factor"],
        original_positions=int(LLAMA3["original_max_position_embeddings"]),
    )
    theta = reader.number("rope.freq_base", 10000.0)
    plain = rope_frequencies(head_dim, theta, RopeScaling())
    expected = plain / rope_frequencies(head_dim, theta, scaling)
    if not factor >= 1 or not np.allclose(divisors, expected, rtol=1e-4):
        raise UserError(
            f"{path}: the numbers in {FREQUENCIES} are not those of Llama 3.1 to 3.3 with factor {factor:g}. "
            "Take the model's Hugging Face folder, whose config.json has its settings"
        )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}
