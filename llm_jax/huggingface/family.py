"""A model family: the translation of its config.json in both directions, and the table of its tensors.

Each module of `llm_jax.huggingface.families` is one family, found by its name: `families/X.py` has `FAMILY`,
whose `model_type` is X.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError, nearest
from llm_jax.huggingface import families
from llm_jax.huggingface.config_reader import ConfigReader
from llm_jax.huggingface.tensor_map import Entry
from llm_jax.model.config import MOST_LAYERS, ModelConfig
from llm_jax.model.config_parts import MoEConfig, RopeScaling

Tree = Mapping[str, Any]
"""The JSON object that a config.json holds."""
SCORE = "score.weight"
"""The tensor of the head of a reward model, in all families."""


@dataclass(frozen=True)
class Key:
    """A key of config.json whose value is that of a field of ModelConfig."""

    name: str
    field: str
    """The field of ModelConfig; dots separate nested configurations."""
    default: Any
    """Default in the Hugging Face config class. None: an optional integer derived from other keys."""
    aliases: tuple[str, ...] = ()
    """Other spellings of the key: each is read, and all are written."""


@dataclass(frozen=True)
class Family:
    """One family of models. All its functions are pure."""

    model_type: str
    architecture: str
    """The name of the class in transformers."""
    keys: tuple[Key, ...]
    """The keys that are fields of ModelConfig under another name."""
    read: Callable[[ConfigReader, dict[str, Any]], dict[str, Any]]
    """(reader, field → value of `keys`) → field → value of all other fields that the family sets."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """The keys of config.json other than `keys`, in all spellings.

    `inexpressible` finds what they can't express.
    """
    tensors: Callable[[ModelConfig, Tree], list[Entry]]
    """(model, config.json) → the table of tensors.

    To write a model, config.json is that of `write_config`.
    """
    rank: int
    """Of several families that can express a model, the one with the lowest rank is written: the plainest
    first.
    """
    buffers: tuple[str, ...] = ()
    """Patterns of the names of tensors that hold no weights, in old files."""
    prefix: str = ""
    """The start of all tensors' names except the head's, which some files omit."""
    heads_divide: bool = False
    """True if transformers 5 requires the width to be a multiple of the number of heads, even with a given
    head_dim.
    """
    classifier: str = ""
    """The name of the class in transformers for the model with a head that makes one number of a text: a
    reward model. "": there is none.
    """
    adapter_targets: tuple[str, ...] = ()
    """The modules that PEFT adapts where an adapter's config names none (its table
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING); (): it has no default.
    """

    def entries(self, model: ModelConfig, tree: Tree) -> list[Entry]:
        """The table of tensors, with the head of a reward model in place of that for logits."""
        entries = self.tensors(model, tree)
        if model.outputs == "logits":
            return entries
        return [
            dataclasses.replace(entry, tensor=SCORE) if entry.array == "head" else entry for entry in entries
        ]

    def read_config(self, tree: dict[str, Any], where: object) -> ModelConfig:
        """The model that a config.json describes, resolved.

        Raises UserError for a key that is unknown or not supported.
        """
        reader = ConfigReader(tree, where)
        values: dict[str, Any] = {}
        for key in self.keys:
            if key.default is None:
                values[key.field] = reader.number(key.name, None, *key.aliases, whole=True)
            else:
                values[key.field] = reader.take(key.name, key.default, *key.aliases)
        if isinstance(layers := values.get("layers"), int) and layers > MOST_LAYERS:
            raise reader.error(f"{layers} layers: must be at most {MOST_LAYERS:,}")
        reader.check_quantization()
        values |= self.read(reader, values)
        values["outputs"] = self.read_outputs(reader)
        reader.finish()
        try:
            return replace_nested(ModelConfig(), values).resolved()
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def read_outputs(self, reader: ConfigReader) -> str:
        """`ModelConfig.outputs`, by the class that the model is of. Raises UserError for a classifier of
        texts that is no reward model."""
        names = reader.array("architectures") or []
        if not any(str(name).endswith("ForSequenceClassification") for name in names):
            return "logits"
        labels = reader.number("num_labels", None, whole=True)
        labels = len(reader.group("id2label") or ("LABEL_0", "LABEL_1")) if labels is None else labels
        if labels != 1 or not self.classifier:
            raise reader.error(
                f"architectures={names}: tells {labels} labels apart; of such models only reward models "
                "are read, which have one (id2label)"
            )
        return "reward"

    def write_config(self, model: ModelConfig) -> dict[str, Any]:
        """The config.json of a model, as transformers 4 and 5 and other libraries read it."""
        tree: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type}
        if model.outputs == "reward" and self.classifier:
            one_label = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
            tree |= {"architectures": [self.classifier], **one_label}
        for key in self.keys:
            value = functools.reduce(getattr, key.field.split("."), model)
            if value is not None or key.default is None:  # without experts there is no moe.mlp
                tree |= dict.fromkeys((key.name, *key.aliases), value)
        return {**tree, **self.write(model)}


def replace_nested(config: Any, values: dict[str, Any]) -> Any:
    """A copy of a dataclass with other values, given by field; a dotted field is one of a nested
    dataclass.
    """
    groups: dict[str, dict[str, Any]] = {}
    own = {}
    for name, value in values.items():
        first, _, rest = name.partition(".")
        if rest:
            groups.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    nested = {name: replace_nested(getattr(config, name), group) for name, group in groups.items()}
    return dataclasses.replace(config, **own, **nested)


@functools.cache
def family_names() -> tuple[str, ...]:
    """The `model_type` of each family, ordered by rank."""
    names = [module.name for module in pkgutil.iter_modules(families.__path__)]
    return tuple(sorted(names, key=lambda name: (_module_family(name).rank, name)))


def load_family(model_type: str, where: object) -> Family:
    """The family of a `model_type`.

    Raises UserError, with the nearest name, if there is none; it names `where` first.
    """
    if model_type not in family_names():
        near = nearest(str(model_type), family_names())
        raise UserError(f"{where}: model_type={model_type}: there is no such family here; {near}")
    return _module_family(model_type)


def _module_family(name: str) -> Family:
    family: Family = importlib.import_module(f"{families.__name__}.{name}").FAMILY
    return family


FIELDS_NOT_IN_CONFIG_JSON = (
    "init_std", "parametrization", "base_embed", "base_layers", "base_head_dim", "remat", "offload",
    "scan_layers", "attention", "max_segments", "parameter_dtype", "compute_dtype", "gradient_dtype",
    "softmax_dtype", "logits_dtype", "moe.balance_loss", "moe.balance_over", "moe.z_loss", "moe.bias_rate",
    "moe.product", "moe.capacity_factor",
)  # fmt: skip
"""Fields of ModelConfig that only training needs, or that select how the same numbers are computed."""


def inexpressible(family: Family, model: ModelConfig) -> list[str]:
    """The fields of a model that a family can't express, as "model.FIELD=value": those that writing and
    reading the config changes.
    """
    from llm_jax.core.config_tree import flat

    if family.heads_divide and model.embed % model.heads:
        return [f"model.embed={model.embed} with model.heads={model.heads}"]
    try:
        again = family.read_config(family.write_config(model), family.model_type)
    except (UserError, ArithmeticError) as error:
        return [str(error)]
    before, after = (
        {**flat(dataclasses.asdict(config)), "attention_scale": attention_scale(config)}
        for config in (model, again)
    )
    ignored = {*FIELDS_NOT_IN_CONFIG_JSON, *inactive_fields(model)}
    return [
        f"model.{f}={before[f]}" for f in before if f not in ignored and not equal_values(before[f], after[f])
    ]


def attention_scale(model: ModelConfig) -> float:
    """The factor of attention's scores: `model.attention_scale`, or its default head_dim^-0.5."""
    assert model.head_dim is not None
    return model.head_dim**-0.5 if model.attention_scale is None else model.attention_scale


def inactive_fields(model: ModelConfig) -> list[str]:
    """The fields of a model that have no effect because of the values of other fields."""
    fields: list[str] = []
    groups = {"moe": MoEConfig, "rope_scaling": RopeScaling}
    parts = {
        name: [f"{name}.{field.name}" for field in dataclasses.fields(group)]
        for name, group in groups.items()
    }
    if model.position == "rope":
        fields += ["positions"]
    else:
        fields += ["rope_theta", "rope_fraction", "rope_theta_window", *parts["rope_scaling"]]
    if model.rope_scaling.kind == "none":
        fields += [field for field in parts["rope_scaling"] if field != "rope_scaling.kind"]
    if not model.moe.experts:
        fields += [field for field in parts["moe"] if field != "moe.experts"]
    if len(model.sparse_layers) == model.layers:
        fields += ["mlp"]
    return fields


def equal_values(a: Any, b: Any) -> bool:
    """True if two values are equal, numbers up to rounding and tuples as lists."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-12)
    return (list(a) if isinstance(a, tuple) else a) == (list(b) if isinstance(b, tuple) else b)


def family_for(model: ModelConfig, required: str = "", preferred: str = "") -> Family:
    """The family that can express a model: `required` only, or `preferred` if it can, or the first by rank
    that can.

    Raises UserError with what the closest family can't express.
    """
    if model.parametrization != "standard":
        raise UserError(
            f"model.parametrization={model.parametrization}: no family has its multipliers; only standard "
            "can be saved"
        )
    if model.moe.experts and model.moe.dispatch != "dropless":
        raise UserError(
            f"model.moe.dispatch={model.moe.dispatch}: families send tokens to experts without a limit; "
            "only dropless can be saved"
        )
    names = (
        (required,)
        if required
        else tuple(dict.fromkeys((*([preferred] if preferred else []), *family_names())))
    )
    lacking: dict[str, list[str]] = {}
    for name in names:
        family = load_family(name, "family")
        lacking[name] = inexpressible(family, model)
        if not lacking[name]:
            return family
    # A family that refuses the config it wrote is further away than any that loses fields.
    closest = min(names, key=lambda name: (not lacking[name][0].startswith("model."), len(lacking[name])))
    problem = ", ".join(lacking[closest])
    if required:
        raise UserError(
            f"{problem}: the family {required} cannot express this model. Give another family=, or none"
        )
    raise UserError(
        f"{problem}: no supported family can express this model; {closest} is closest, but lacks this"
    )


def read_model(tree: dict[str, Any], folder: Path) -> tuple[Family, ModelConfig]:
    """(family, model) of a folder's config.json, whose object is `tree`."""
    where = folder / "config.json"
    if "model_type" not in tree:
        raise UserError(f"{where}: model_type is missing; it names the model's family")
    family = load_family(tree["model_type"], where)
    return family, family.read_config(tree, where)
