"""Rotary embeddings in a config.json, in the spellings of transformers 4 (and the Hub) and 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.model.config import ModelConfig, RopeScaling

KINDS = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
"""`rope_type` → `rope_scaling.kind` of ModelConfig."""
ROPE_TYPES = {kind: rope_type for rope_type, kind in KINDS.items()}
LLAMA3 = {"low_freq_factor": "low_frequency_factor", "high_freq_factor": "high_frequency_factor"}
YARN = {"beta_fast": "beta_fast", "beta_slow": "beta_slow"}
ALWAYS = ("rope_theta", "partial_rotary_factor")
SCALING = {"factor", "original_max_position_embeddings", "attention_factor", *LLAMA3, *YARN}
"""Keys of scaling, which have no effect with rope_type=default."""
NUMBERS = {*ALWAYS, *SCALING, "mscale", "mscale_all_dim"}
"""Keys whose values must be numbers; those not in ALWAYS may be null."""


def read_rope(
    reader: ConfigReader,
    theta: float = 10000.0,
    fraction: float = 1.0,
    positions: int = 2048,
    aliases: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The fields `rope_theta`, `rope_fraction` and `rope_scaling` of ModelConfig.

    `theta` and `fraction` are the family's defaults; with fraction=1 no other fraction is accepted.
    `positions` is the model's max_position_embeddings. `aliases` has other spellings of the keys in ALWAYS.
    """
    return rope_fields(reader, rope_parameters(reader, aliases or {}), theta, fraction, positions)


def rope_parameters(reader: ConfigReader, aliases: Mapping[str, str]) -> dict[str, Any]:
    """All settings of the rotary embedding in a config.json, from either spelling or both, with the keys of
    `rope_parameters`.

    Raises UserError if two spellings differ.
    """
    groups: list[dict[str, Any]] = [reader.group(name) for name in ("rope_parameters", "rope_scaling")]
    top_level = {
        name: reader.take(name, None, *([aliases[name]] if name in aliases else [])) for name in ALWAYS
    }
    merged: dict[str, Any] = {}
    for values in (*groups, {k: v for k, v in top_level.items() if v is not None}):
        for key, value in values.items():
            key = "rope_type" if key == "type" else key  # its first name
            if merged.setdefault(key, value) != value:
                raise reader.error(
                    f"{key} of the rotary embedding is {merged[key]} in one place and {value} in another"
                )
    return merged


def rope_fields(
    reader: ConfigReader, given: dict[str, Any], theta: float, fraction: float, positions: int
) -> dict[str, Any]:
    """The fields of ModelConfig for settings of the rotary embedding with the keys of `rope_parameters` (see
    `read_rope`).
    """
    given = dict(given)
    kind = given.pop("rope_type", given.pop("type", "default"))
    if not isinstance(kind, str) or kind not in KINDS:
        raise reader.error(f"rope_type={kind}: is not supported; must be one of {', '.join(KINDS)}")
    for name, value in given.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if name in NUMBERS and not number and (value is not None or name in ALWAYS):
            raise reader.error(
                f"{name}={'null' if value is None else value} in the rotary embedding: must be a number"
            )
    theta, rotated = given.pop("rope_theta", theta), given.pop("partial_rotary_factor", fraction)
    if fraction == 1 != rotated:
        raise reader.error(
            f"partial_rotary_factor={rotated} in the rotary embedding: is not supported for this family; "
            "must be 1"
        )
    values: dict[str, Any] = {}
    if kind != "default":
        values["factor"] = given.pop("factor", None)
    if kind in ("llama3", "yarn"):
        inside, outside = (
            given.pop("original_max_position_embeddings", None),
            reader.take("original_max_position_embeddings", None),
        )
        if None not in (inside, outside) and inside != outside:
            raise reader.error(
                f"original_max_position_embeddings={outside}: is {inside} in the rotary embedding; both "
                "must be equal"
            )
        original = next((n for n in (inside, outside) if n is not None), positions)
        if original < 1 or original % 1:
            raise reader.error(
                f"original_max_position_embeddings={original}: must be a whole number, at least 1"
            )
        values["original_positions"] = original
        values |= {
            field: given.pop(name)
            for name, field in {"llama3": LLAMA3, "yarn": YARN}[kind].items()
            if given.get(name) is not None
        }
        if kind == "llama3" and not values.keys() >= set(LLAMA3.values()):
            raise reader.error(f"rope_type=llama3: needs {' and '.join(LLAMA3)}")
    if kind == "yarn":
        values["factor"] = values["factor"] or positions / values["original_positions"]
        mscale, mscale_all_dim = given.pop("mscale", None), given.pop("mscale_all_dim", None)
        values["attention_factor"] = given.pop("attention_factor", None)
        if values["attention_factor"] is None and mscale and mscale_all_dim:
            values["attention_factor"] = yarn_mscale(values["factor"], mscale) / yarn_mscale(
                values["factor"], mscale_all_dim
            )
        truncate = given.pop("truncate", True)
        if not isinstance(truncate, bool):
            raise reader.error(f"truncate={truncate} in the rotary embedding: must be true or false")
    if kind != "default" and not values["factor"]:
        raise reader.error(f"rope_type={kind}: needs a factor")
    inert = {"finetuned", *(SCALING if kind == "default" else ())}
    for key, value in given.items():
        if value is not None and key not in inert:
            raise reader.error(
                f"{key}={value} in the rotary embedding: is unknown with rope_type={kind}, and may change "
                "what the model computes"
            )
    numbers: dict[str, Any] = {key: value if value is None else float(value) for key, value in values.items()}
    if kind == "yarn":
        numbers["truncate"] = truncate
    if "original_positions" in numbers:
        numbers["original_positions"] = int(numbers["original_positions"])
    scaling = RopeScaling(**{"kind": KINDS[kind], **numbers})
    return {"rope_theta": float(theta), "rope_fraction": float(rotated), "rope_scaling": scaling}


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's sqrt(1/t) (Peng et al. 2023), by which queries and keys are each multiplied; `mscale` is
    DeepSeek-V2's.
    """
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def scaling_parameters(scaling: RopeScaling) -> dict[str, Any]:
    """The keys of `rope_parameters` and `rope_scaling` for a scaling of frequencies."""
    keys: dict[str, Any] = {"rope_type": ROPE_TYPES[scaling.kind]}
    if scaling.kind != "none":
        keys["factor"] = scaling.factor
    if scaling.kind in ("llama3", "yarn"):
        keys["original_max_position_embeddings"] = scaling.original_positions
        fields = {"llama3": LLAMA3, "yarn": YARN}[scaling.kind]
        keys |= {name: getattr(scaling, field) for name, field in fields.items()}
    if scaling.kind == "yarn":
        keys |= {} if scaling.truncate else {"truncate": False}
        keys |= {} if scaling.attention_factor is None else {"attention_factor": scaling.attention_factor}
    return keys


def write_rope(model: ModelConfig, **more: Any) -> dict[str, Any]:
    """The keys of the rotary embedding in both spellings; `more` are further keys of its scaling."""
    scaling = {**scaling_parameters(model.rope_scaling), **more}
    return {
        "rope_parameters": {**scaling, "rope_theta": model.rope_theta},
        "rope_theta": model.rope_theta,
        "rope_scaling": None if model.rope_scaling.kind == "none" else scaling,
    }
