"""Rotary embeddings in a config.json: `rope_theta` and `rope_scaling` of transformers 4 and the Hub, `rope_parameters` of transformers 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llm_jax.huggingface.config_reader import Keys
from llm_jax.model.config import ModelConfig, RopeScaling

KINDS = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
NAMES = {ours: theirs for theirs, ours in KINDS.items()}
LLAMA3 = {"low_freq_factor": "low_frequency_factor", "high_freq_factor": "high_frequency_factor"}
YARN = {"beta_fast": "beta_fast", "beta_slow": "beta_slow"}
ALWAYS = ("rope_theta", "partial_rotary_factor")
SCALING = {"factor", "original_max_position_embeddings", "attention_factor", *LLAMA3, *YARN}
"""What is said of kinds of scaling, and without say where there is none."""
NUMBERS = {*ALWAYS, *SCALING, "mscale", "mscale_all_dim"}
"""What must be a number; what isn't needed ALWAYS may be null."""


def read_rope(
    keys: Keys, theta: float = 10000.0, fraction: float = 1.0, positions: int = 2048, also: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Our values of `rope_theta`, `rope_fraction` and `rope_scaling`.

    theta, fraction: the family's defaults; where all of a head is rotated, that can't be said otherwise. positions: the model's
    max_position_embeddings. also: other spellings of ALWAYS.
    """
    return from_parameters(keys, parameters(keys, also or {}), theta, fraction, positions)


def parameters(keys: Keys, also: Mapping[str, str]) -> dict[str, Any]:
    """All that a config.json says of its rotary embedding, in either spelling or both, as `rope_parameters` would have it."""
    told: list[dict[str, Any]] = [keys.group(name) for name in ("rope_parameters", "rope_scaling")]
    apart = {name: keys.take(name, None, *([also[name]] if name in also else [])) for name in ALWAYS}
    made: dict[str, Any] = {}
    for values in (*told, {k: v for k, v in apart.items() if v is not None}):
        for key, value in values.items():
            key = "rope_type" if key == "type" else key  # as it was called first
            if made.setdefault(key, value) != value:
                raise keys.wrong(f"{key} of the rotary embedding is {made[key]} in one place and {value} in another")
    return made


def from_parameters(keys: Keys, given: dict[str, Any], theta: float, fraction: float, positions: int) -> dict[str, Any]:
    """`read_rope` of the values in `given`, as `rope_parameters` has them."""
    given = dict(given)
    kind = given.pop("rope_type", given.pop("type", "default"))
    if not isinstance(kind, str) or kind not in KINDS:
        raise keys.wrong(f"rope_type={kind}: is not built here; must be one of {', '.join(KINDS)}")
    for name, value in given.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if name in NUMBERS and not number and (value is not None or name in ALWAYS):
            raise keys.wrong(f"{name}={'null' if value is None else value} in the rotary embedding: must be a number")
    theta, rotated = given.pop("rope_theta", theta), given.pop("partial_rotary_factor", fraction)
    if fraction == 1 != rotated:
        raise keys.wrong(f"partial_rotary_factor={rotated} in the rotary embedding: is not built here for this family; must be 1")
    values: dict[str, Any] = {}
    if kind != "default":
        values["factor"] = given.pop("factor", None)
    if kind in ("llama3", "yarn"):
        inside, outside = given.pop("original_max_position_embeddings", None), keys.take("original_max_position_embeddings", None)
        if None not in (inside, outside) and inside != outside:
            raise keys.wrong(f"original_max_position_embeddings={outside}: is {inside} in the rotary embedding")
        original = next((n for n in (inside, outside) if n is not None), positions)
        if original < 1 or original % 1:
            raise keys.wrong(f"original_max_position_embeddings={original}: must be a whole number, at least 1")
        values["original_positions"] = original
        values |= {ours: given.pop(theirs) for theirs, ours in {"llama3": LLAMA3, "yarn": YARN}[kind].items() if given.get(theirs) is not None}
        if kind == "llama3" and not values.keys() >= set(LLAMA3.values()):
            raise keys.wrong(f"rope_type=llama3: needs {' and '.join(LLAMA3)}")
    if kind == "yarn":
        values["factor"] = values["factor"] or positions / values["original_positions"]
        mscale, mscale_all_dim = given.pop("mscale", None), given.pop("mscale_all_dim", None)
        values["attention_factor"] = given.pop("attention_factor", None)
        if values["attention_factor"] is None and mscale and mscale_all_dim:
            values["attention_factor"] = stretch(values["factor"], mscale) / stretch(values["factor"], mscale_all_dim)
        truncate = given.pop("truncate", True)
        if not isinstance(truncate, bool):
            raise keys.wrong(f"truncate={truncate} in the rotary embedding: must be true or false")
    if kind != "default" and not values["factor"]:
        raise keys.wrong(f"rope_type={kind}: needs a factor")
    idle = {"finetuned", *(SCALING if kind == "default" else ())}
    for key, value in given.items():
        if value is not None and key not in idle:
            raise keys.wrong(f"{key}={value} in the rotary embedding: is unknown with rope_type={kind}, and may change what the model computes")
    numbers: dict[str, Any] = {key: value if value is None else float(value) for key, value in values.items()}
    if kind == "yarn":
        numbers["truncate"] = truncate
    if "original_positions" in numbers:
        numbers["original_positions"] = int(numbers["original_positions"])
    scaling = RopeScaling(**{"kind": KINDS[kind], **numbers})
    return {"rope_theta": float(theta), "rope_fraction": float(rotated), "rope_scaling": scaling}


def stretch(factor: float, mscale: float = 1.0) -> float:
    """How much larger YaRN wants attention's scores to be, as a factor of queries (Peng et al. 2023; DeepSeek-V2)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def scaling_parameters(scaling: RopeScaling) -> dict[str, Any]:
    """What `rope_parameters` and `rope_scaling` say of how frequencies are stretched."""
    made: dict[str, Any] = {"rope_type": NAMES[scaling.kind]}
    if scaling.kind != "none":
        made["factor"] = scaling.factor
    if scaling.kind in ("llama3", "yarn"):
        made["original_max_position_embeddings"] = scaling.original_positions
        made |= {theirs: getattr(scaling, ours) for theirs, ours in {"llama3": LLAMA3, "yarn": YARN}[scaling.kind].items()}
    if scaling.kind == "yarn":
        made |= {} if scaling.truncate else {"truncate": False}
        made |= {} if scaling.attention_factor is None else {"attention_factor": scaling.attention_factor}
    return made


def write_rope(model: ModelConfig, **more: Any) -> dict[str, Any]:
    """Both spellings. more: what else is said of a scaling."""
    scaling = {**scaling_parameters(model.rope_scaling), **more}
    return {
        "rope_parameters": {**scaling, "rope_theta": model.rope_theta},
        "rope_theta": model.rope_theta,
        "rope_scaling": None if model.rope_scaling.kind == "none" else scaling,
    }
