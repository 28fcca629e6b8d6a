"""What a family of models is: its config.json in both directions, and the table of its tensors."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError, nearest
from llm_jax.huggingface.config_reader import Keys
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import ModelConfig
from llm_jax.model.config_parts import MoEConfig, RopeScaling

MODULES = (
    "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "olmo2", "gemma2", "gemma3_text", "deepseek_v3",
)  # fmt: skip
"""Of `families`, by `model_type`; where several can express a run's model, the first is taken."""


Tree = Mapping[str, Any]
"""A config.json."""


@dataclass(frozen=True)
class Key:
    """A key that has the same meaning as one of ours."""

    theirs: str
    ours: str
    default: Any
    """Of their class, for files without the key. None: a whole number, or null, which follows from others."""
    also: tuple[str, ...] = ()
    """Other spellings that are read; and written, too."""


@dataclass(frozen=True)
class Family:
    """One family. All functions are pure."""

    model_type: str
    architecture: str
    """Their class."""
    keys: tuple[Key, ...]
    """What is the same under another name."""
    read: Callable[[Keys, dict[str, Any]], dict[str, Any]]
    """(keys, our values that `keys` gave) → the other values, by our names."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """The other keys of a config.json for a model, in both spellings. What it can't say is found by reading it again."""
    tensors: Callable[[ModelConfig, Tree], list[Entry]]
    """(model, config.json) → its table. For what is written the config is that of `write_config`."""
    buffers: tuple[str, ...] = ()
    """Patterns of tensors that hold no weights, in old files."""
    prefix: str = ""
    """What all names begin with but for the head's; some files leave it out."""
    heads_divide: bool = False
    """Whether transformers 5 refuses a width that is no multiple of the heads, although heads have a width of their own."""

    def read_config(self, tree: dict[str, Any], where: object) -> ModelConfig:
        """The model that a config.json describes, resolved. Raises UserError for what is unknown, or is known and not built here."""
        keys = Keys(tree, where)
        values: dict[str, Any] = {
            key.ours: keys.number(key.theirs, None, *key.also, whole=True) if key.default is None else keys.take(key.theirs, key.default, *key.also)
            for key in self.keys
        }
        keys.check_quantization()
        values |= self.read(keys, values)
        keys.finish()
        try:
            return made(ModelConfig(), values).resolved()
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        """The config.json of a model, as transformers 4, 5 and others read it."""
        tree: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type}
        for key in self.keys:
            value = valued(model, key.ours)
            if value is not None or key.default is None:  # a model without experts has no width of theirs
                tree |= dict.fromkeys((key.theirs, *key.also), value)
        return {**tree, **self.write(model)}


def made(config: Any, values: dict[str, Any]) -> Any:
    """A configuration with values set by dotted keys."""
    groups: dict[str, dict[str, Any]] = {}
    plain = {}
    for key, value in values.items():
        first, _, rest = key.partition(".")
        if rest:
            groups.setdefault(first, {})[rest] = value
        else:
            plain[first] = value
    return dataclasses.replace(config, **plain, **{name: made(getattr(config, name), group) for name, group in groups.items()})


def valued(config: Any, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def family(model_type: str, where: object) -> Family:
    """The family of a `model_type`. Raises UserError if there is none."""
    if model_type not in MODULES:
        raise UserError(f"{where}: model_type={model_type}: is not a family that is read here; {nearest(str(model_type), MODULES)}")
    return importlib.import_module(f"llm_jax.huggingface.families.{model_type}").FAMILY


FOR_TRAINING = (
    "init_std", "parametrization", "base_embed", "base_layers", "base_head_dim", "remat", "offload", "scan_layers", "attention", "max_segments",
    "parameter_dtype", "compute_dtype", "gradient_dtype", "softmax_dtype", "logits_dtype", "moe.balance_loss", "moe.balance_over", "moe.z_loss",
    "moe.bias_rate", "moe.product", "moe.capacity_factor",
)  # fmt: skip
"""Keys of a model that no config.json has to say: they are about training, or about how the same numbers are computed."""


def unsaid(one: Family, model: ModelConfig) -> list[str]:
    """What a family can't express of a model: the keys that are another when what it writes is read again, as "key=value"."""
    from llm_jax.core.config_tree import flat

    if one.heads_divide and model.embed % model.heads:
        return [f"model.embed={model.embed} with model.heads={model.heads}"]
    try:
        again = one.read_config(one.write_config(model), one.model_type)
    except (UserError, ArithmeticError) as error:
        return [str(error)]
    before, after = ({**flat(dataclasses.asdict(config)), "attention_scale": attention_scale(config)} for config in (model, again))
    idle = {*FOR_TRAINING, *without_say(model)}
    return [f"model.{key}={before[key]}" for key in before if key not in idle and not same(before[key], after[key])]


def attention_scale(model: ModelConfig) -> float:
    """What attention's scores are multiplied by, said or not."""
    assert model.head_dim is not None
    return model.head_dim**-0.5 if model.attention_scale is None else model.attention_scale


def without_say(model: ModelConfig) -> list[str]:
    """The keys of a model that other keys leave without a say."""
    keys: list[str] = []
    groups = {"moe": MoEConfig, "rope_scaling": RopeScaling}
    parts = {name: [f"{name}.{field.name}" for field in dataclasses.fields(group)] for name, group in groups.items()}
    if model.position == "rope":
        keys += ["positions"]
    else:
        keys += ["rope_theta", "rope_fraction", "rope_theta_window", *parts["rope_scaling"]]
    if model.rope_scaling.kind == "none":
        keys += [key for key in parts["rope_scaling"] if key != "rope_scaling.kind"]
    if not model.moe.experts:
        keys += [key for key in parts["moe"] if key != "moe.experts"]
    if len(model.sparse_layers) == model.layers:
        keys += ["mlp"]
    return keys


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same, but for rounding."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-12)
    return (list(a) if isinstance(a, tuple) else a) == (list(b) if isinstance(b, tuple) else b)


def family_for(model: ModelConfig, asked: str = "", first: str = "") -> Family:
    """The family that can express a model: the one asked for, or `first` if it can, or the first of all that can.

    Raises UserError with what the nearest one can't express.
    """
    if model.parametrization != "standard":
        raise UserError(f"model.parametrization={model.parametrization}: no family has its multipliers; only standard can be saved")
    if model.moe.experts and model.moe.dispatch != "dropless":
        raise UserError(f"model.moe.dispatch={model.moe.dispatch}: families send tokens to experts without a limit; only dropless can be saved")
    names = (asked,) if asked else tuple(dict.fromkeys((*([first] if first else []), *MODULES)))
    unsaid_by: dict[str, list[str]] = {}
    for name in names:
        one = family(name, "family")
        unsaid_by[name] = unsaid(one, model)
        if not unsaid_by[name]:
            return one
    closest = min(names, key=lambda name: (not unsaid_by[name][0].startswith("model."), len(unsaid_by[name])))  # those that refuse it last
    said = ", ".join(unsaid_by[closest])
    raise UserError(f"{said}: {closest} has no such models" + ("" if asked else ", and all other families that are known here lack more"))


def read_model(tree: dict[str, Any], folder: Path) -> tuple[Family, ModelConfig]:
    """(family, model) of a folder's config.json."""
    where = folder / "config.json"
    if "model_type" not in tree:
        raise UserError(f"{where}: has no model_type, so what model it is of isn't known")
    one = family(tree["model_type"], where)
    return one, one.read_config(tree, where)
