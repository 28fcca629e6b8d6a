"""adapter_config.json of a PEFT folder: read into a `PeftConfig` key by key, and which modules it adapts.

Definitions are those of PEFT 0.21 (peft/tuners/lora/config.py, peft/tuners/tuners_utils.py). A key that may
change what the model computes and is not supported raises UserError by its name; one that is absent has
PEFT's default, so that a config with a few keys loads too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llm_jax.huggingface.config_reader import ConfigReader

NAME = "adapter_config.json"
ALL_LINEAR = "all-linear"
"""The `target_modules` that stands for all matrices but the head."""
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_qalora": (False, None), "kasa_config": (None,), "velora_config": (None,),
    "use_bdlora": (None, False), "arrow_config": (None,), "alora_invocation_tokens": (None,),
    "layer_replication": (None,), "megatron_config": (None,), "monteclora_config": (None,),
    "lora_bias": (False, None), "trainable_token_indices": (None,), "lora_ga_config": (None,),
    "corda_config": (None,),
}  # fmt: skip
"""Keys of variants that are not built → their values that switch the variant off."""
INERT = {
    "auto_mapping", "revision", "inference_mode", "peft_version", "lora_dropout", "fan_in_fan_out",
    "loftq_config", "eva_config", "megatron_core", "qalora_group_size", "runtime_config",
}  # fmt: skip
"""Keys that don't change what a trained adapter computes. `fan_in_fan_out` follows from the model; dropout is
of training."""
UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "mica")
"""The `init_lora_weights` that leave the base's weights as they are."""
REDUCED_BASE = ("pissa", "olora")
"""Those that subtract the first adapter from the base's weights, as a function of these weights alone."""
MERGE = "merge the adapter with PEFT (model.merge_and_unload()) and give the merged model's folder"
"""The remedy for what is not supported."""


@dataclass(frozen=True)
class PeftConfig:
    """What a LoRA adapter is, but for its weights."""

    base: str = ""
    """`base_model_name_or_path`: the folder, or the Hub's name, of the model that it changes; "": unknown."""
    rank: int = 8
    alpha: float = 8.0
    rslora: bool = False
    """The factor of A B is alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski 2023, rsLoRA)."""
    dora: bool = False
    """Weights are normalised and scaled by a learned magnitude (Liu et al. 2024, DoRA)."""
    targets: tuple[str, ...] | str = ()
    """`target_modules`: names, each whole or the last parts of one; a regular expression; or `ALL_LINEAR`."""
    excluded: tuple[str, ...] | str = ()
    """`exclude_modules`: names or a regular expression."""
    parameters: tuple[str, ...] = ()
    """`target_parameters`: names of single parameters, of experts above all, whole or their last parts."""
    whole: tuple[str, ...] = ()
    """`modules_to_save`: the ends of the names of modules whose own weights are in the folder."""
    bias: str = "none"
    """Which biases are in the folder: "none", "all", or "lora_only", those of adapted modules."""
    ranks: dict[str, int] = field(default_factory=dict)
    """`rank_pattern`: regular expression of the last parts of a name → rank."""
    alphas: dict[str, float] = field(default_factory=dict)
    """`alpha_pattern`: regular expression of the last parts of a name → alpha."""
    layers: tuple[int, ...] | None = None
    """`layers_to_transform`: the layers that names in `targets` are about; None: all."""
    layers_pattern: tuple[str, ...] = ()
    """The names of lists of layers that `layers` counts in; (): any."""
    ties: bool = False
    """`ensure_weight_tying`: what is for the embedding is for the head of a tied model too."""
    reduced: str = ""
    """One of `REDUCED_BASE`, if the base's weights are to be reduced by the first adapter; else ""."""

    def adapts(self, module: str, linear: bool = True) -> bool:
        """Whether a module has an adapter, by its name. linear: it is a matrix, and not the head."""
        if matches(self.excluded, module) or any(
            re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.whole
        ):
            return False
        if isinstance(self.targets, str):
            return linear if self.targets == ALL_LINEAR else matches(self.targets, module)
        return module in self.targets or (matches(self.targets, module) and self._of_layer(module))

    def _of_layer(self, module: str) -> bool:
        """Whether a module is of one of `layers`: the first number in its name, or that after a pattern."""
        if self.layers is None:
            return True
        patterns = self.layers_pattern or (r"[^.]*",)
        found = (re.match(rf".*?\.{pattern}\.(\d+)\.", module) for pattern in patterns)
        layer = next((int(match[1]) for match in found if match), None)
        return layer in self.layers

    def adapts_parameter(self, name: str) -> bool:
        """Whether a parameter, by its name, has an adapter of its own."""
        return matches(self.parameters, name)

    def saves(self, module: str) -> bool:
        """Whether the folder holds a module's own weights. PEFT compares the ends of names, without a dot."""
        return module.endswith(self.whole) if self.whole else False

    def rank_of(self, name: str) -> int:
        """The rank of a module's or parameter's adapter."""
        return _first(self.ranks, name, self.rank)

    def alpha_of(self, name: str) -> float:
        """The alpha of a module's or parameter's adapter."""
        return _first(self.alphas, name, self.alpha)


def with_head(config: PeftConfig, embedding: str, head: str) -> PeftConfig:
    """The config of an adapter that `ties`, with the head where the embedding is: both are in its folder.

    embedding, head: the modules' names.
    """
    if config.saves(embedding):
        config = replace(config, whole=(*config.whole, head))
    if not config.adapts(embedding, linear=False):
        return config
    targets = config.targets
    both = rf"(?:{targets})|{re.escape(head)}" if isinstance(targets, str) else (*targets, head)
    return replace(config, targets=both)


def scale_of(alpha: float, rank: int, rslora: bool) -> float:
    """The factor of A B: alpha / rank (Hu et al. 2021), or alpha / sqrt(rank) (Kalajdzievski 2023)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def matches(names: tuple[str, ...] | str, name: str) -> bool:
    """Whether `name` is one of `names` or ends in ".NAME" of one; a single text is a regular expression of
    all of it.

    >>> matches(("c_proj",), "transformer.h.0.mlp.c_proj"), matches("h.*", "transformer.h.0")
    (True, False)
    """
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in names)


def _first(patterns: dict[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that the last parts of a name match."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def read_config(tree: dict[str, Any], where: object, default_targets: Sequence[str] = ()) -> PeftConfig:
    """The adapter that an adapter_config.json describes.

    default_targets: those of the base's family, where the file has none. Raises UserError, naming `where` and
    the key, for a key that is unknown, not supported, or has a value of another kind.
    """
    reader = ConfigReader(tree, where)
    if (kind := reader.take("peft_type", "LORA")) != "LORA":
        raise reader.error(f"peft_type={kind}: is not supported; must be LORA. For another, {MERGE}")
    if (task := reader.take("task_type", None)) not in ("CAUSAL_LM", None):
        raise reader.error(f"task_type={task}: is not supported; must be CAUSAL_LM")
    for name, off in UNSUPPORTED.items():
        if (value := reader.take(name, None)) not in off:
            raise reader.error(f"{name}={value}: is not supported; {MERGE}")
    parameters = _names(reader, "target_parameters")
    targets = _names_or_pattern(reader, "target_modules")
    if targets == () and tree.get("target_modules") is None and not parameters:
        targets = tuple(default_targets)
        if not targets:
            raise reader.error("target_modules is missing, and its family has no default. Name them")
    config = PeftConfig(
        base=_text(reader, "base_model_name_or_path"),
        rank=_size(reader, "r", reader.take("r", 8)),
        alpha=_number(reader, "lora_alpha", reader.take("lora_alpha", 8.0)),
        rslora=bool(reader.take("use_rslora", False)),
        dora=bool(reader.take("use_dora", False)),
        targets=ALL_LINEAR if isinstance(targets, str) and targets.lower() == ALL_LINEAR else targets,
        excluded=_names_or_pattern(reader, "exclude_modules"),
        parameters=parameters,
        whole=_names(reader, "modules_to_save"),
        bias=reader.choice("bias", {name: name for name in ("none", "all", "lora_only")}, "none"),
        ranks={key: _size(reader, f"rank_pattern.{key}", n) for key, n in _patterns(reader, "rank_pattern")},
        alphas={
            key: _number(reader, f"alpha_pattern.{key}", n) for key, n in _patterns(reader, "alpha_pattern")
        },
        layers=_layers(reader),
        layers_pattern=_names(reader, "layers_pattern"),
        ties=bool(reader.take("ensure_weight_tying", False)),
        reduced=_reduced(reader),
    )
    if isinstance(config.targets, str) and config.layers is not None:
        raise reader.error("layers_to_transform: needs a list of target_modules, and that is a single text")
    for pattern in (config.targets, config.excluded, *config.layers_pattern, *config.ranks, *config.alphas):
        if isinstance(pattern, str):
            _check_pattern(reader, pattern)
    reader.finish(INERT, {})
    return config


def _reduced(reader: ConfigReader) -> str:
    """The method by which the base's weights are reduced; "" for none."""
    init = reader.take("init_lora_weights", None)
    init = True if init is None else init.lower() if isinstance(init, str) else init
    if init in UNCHANGED_BASE:
        return ""
    if init in REDUCED_BASE:
        return str(init)
    if isinstance(init, str) and init.startswith("pissa_niter_"):
        problem = "is not supported: the random decomposition that reduced its base is not in the folder"
        raise reader.error(
            f"init_lora_weights={init}: {problem}. Save it with path_initial_model_for_weight_conversion"
        )
    raise reader.error(f"init_lora_weights={init}: is not supported; {MERGE}")


def _layers(reader: ConfigReader) -> tuple[int, ...] | None:
    """The layers of `layers_to_transform`, one or a list; None for all."""
    value = reader.take("layers_to_transform", None)
    layers = [value] if type(value) is int else value
    if layers is None or layers == []:
        return None
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise reader.error(f"layers_to_transform={value}: must be a number, or a list of them")
    return tuple(layers)


def _text(reader: ConfigReader, name: str) -> str:
    """The text of a key; "" if it is absent or null."""
    value = reader.take(name, None)
    if not isinstance(value, str | None):
        raise reader.error(f"{name}={value}: must be a text")
    return value or ""


def _names_or_pattern(reader: ConfigReader, name: str) -> tuple[str, ...] | str:
    """The value of a key that is a list of names or a regular expression; () if it is absent or null."""
    value = reader.take(name, None)
    return value if isinstance(value, str) and value else _listed(reader, name, value)


def _names(reader: ConfigReader, name: str) -> tuple[str, ...]:
    """The names in the list of a key, or its single name; () if it is absent or null."""
    value = reader.take(name, None)
    return _listed(reader, name, [value] if isinstance(value, str) and value else value)


def _listed(reader: ConfigReader, name: str, value: Any) -> tuple[str, ...]:
    if value and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise reader.error(f"{name}={value}: must be a list of names")
    return tuple(value or ())


def _patterns(reader: ConfigReader, name: str) -> list[tuple[str, Any]]:
    """The entries of a table of regular expressions."""
    return list(reader.group(name).items())


def _size(reader: ConfigReader, name: str, value: Any) -> int:
    """A rank. Raises UserError unless it is a whole number above 0 that an array can have."""
    if type(value) is not int or not 0 < value < 2**20:
        raise reader.error(f"{name}={value}: must be a whole number above 0")
    return value


def _number(reader: ConfigReader, name: str, value: Any) -> float:
    """An alpha. Raises UserError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise reader.error(f"{name}={value}: must be a number")
    return float(value)


def _check_pattern(reader: ConfigReader, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise reader.error(f"{pattern!r}: is no regular expression ({error})") from None
