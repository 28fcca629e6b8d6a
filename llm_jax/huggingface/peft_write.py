"""Writes an adapter as a PEFT folder: adapter_config.json and adapter_model.safetensors.

An adapter that was read from such a folder has the same bytes again. One that was trained here gets a config
that names exactly the matrices it changes (`config_for`).
"""

from __future__ import annotations

import collections
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.huggingface.peft import WEIGHTS, Base, LowRank, PeftAdapter, whole_tensors
from llm_jax.huggingface.peft_config import NAME, PeftConfig
from llm_jax.huggingface.peft_map import Matrix, MatrixPart, expert_modules, matrices, targets_of
from llm_jax.huggingface.safetensors import FLOATS, NAMES, PlannedTensor, write_header
from llm_jax.huggingface.tensor_layout import SizedPattern

FIRST = ("F64", "F32", "BF16", "F16")
"""The order of dtypes in a file of the safetensors library."""


def write_peft(adapter: PeftAdapter, base: Base, folder: Path) -> None:
    """Writes both files into a folder that exists."""
    tensors = peft_tensors(adapter, base)
    order = sorted(tensors, key=lambda name: (FIRST.index(_dtype(tensors[name])), name))
    names = {short: name for name, short in NAMES.items()}
    with (folder / WEIGHTS).open("wb") as file:
        planned = [PlannedTensor(name, names[_dtype(tensors[name])], tensors[name].shape) for name in order]
        write_header(file, planned)
        for name in order:
            np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).tofile(file)
    (folder / NAME).write_text(json.dumps(adapter.tree, indent=2))


def _dtype(tensor: np.ndarray) -> str:
    """The name of an array's dtype in a file."""
    return next(name for name, kind in FLOATS.items() if tensor.dtype == kind)


def peft_tensors(adapter: PeftAdapter, base: Base) -> dict[str, np.ndarray]:
    """The tensors of an adapter by their names in a PEFT folder, in their dtypes there."""
    tensor_map = base.tensor_map()
    targets = targets_of(adapter.config, matrices(tensor_map, adapter.separate))
    tensors: dict[str, np.ndarray] = {}
    for target in targets:
        rank = target.rank(adapter.config)
        for factor, key in target.keys(adapter.config).items():
            parts = [
                (part.pattern(factor, rank), _factor(adapter, part, factor, rank))
                for part in target.matrix.parts
            ]
            tensors[key] = _joined(parts, np.dtype(FLOATS[adapter.dtypes.get(key, "F32")]))
    for key, slices in whole_tensors(adapter.config, tensor_map, targets, adapter.separate).items():
        if all(part.prefix in adapter.whole.get(part.path, {}) for part in slices):
            parts = [(part.pattern, adapter.whole[part.path][part.prefix]) for part in slices]
            tensors[key] = _joined(parts, parts[0][1].dtype)
    return tensors


def _factor(adapter: PeftAdapter, part: MatrixPart, factor: str, rank: int) -> np.ndarray:
    """A factor of the adapter of one slice, cut to its rank."""
    low = adapter.low_rank[part.path]
    if factor == "magnitude":
        assert low.magnitude is not None
        return low.magnitude[part.prefix]
    if factor == "lora_A":
        return low.lora_A[part.prefix][..., :rank]
    return low.lora_B[part.prefix][(slice(None),) * part.experts + (slice(0, rank),)]


def _joined(parts: list[tuple[SizedPattern, np.ndarray]], dtype: np.dtype) -> np.ndarray:
    """A tensor of a file from the slices in it."""
    tensor = np.empty(parts[0][0].tensor_shape, dtype)
    for pattern, values in parts:
        pattern.write(values.transpose(pattern.permutation), tensor)
    return tensor


def made_here(low_rank: Mapping[str, LowRank], base: Base, base_name: str) -> PeftAdapter:
    """An adapter that was trained here, ready to be written; `base_name` becomes its
    `base_model_name_or_path`.

    Raises UserError for what PEFT has no form of: DoRA of experts.
    """
    tensor_map = base.tensor_map()
    found = matrices(tensor_map, separate=False)
    low_rank = shared_inputs(low_rank, found)
    config = config_for(low_rank, base, found, base_name)
    adapter = PeftAdapter(config, dict(low_rank), tree=config_tree(config, base), where=base_name)
    chosen = {target.matrix.name for target in targets_of(config, found)}
    wanted = {matrix.name for matrix in found if _rank(low_rank, matrix)}
    assert chosen == wanted, f"the config adapts other matrices: {sorted(chosen ^ wanted)[:3]}"
    return adapter


def _experts_in_front(found: Iterable[Matrix], path: str) -> bool:
    """Whether the slices of an array hold all experts of a layer."""
    return any(part.experts for matrix in found for part in matrix.parts if part.path == path)


def shared_inputs(low_rank: Mapping[str, LowRank], found: Iterable[Matrix]) -> dict[str, LowRank]:
    """Adapters of arrays that the files fuse into one matrix, with one A: the parts of a matrix share it.

    Where they have different ones the fused adapter has all of them: its rank is the sum of theirs, and B is
    zero but where a part meets its own A. Every part computes what it did.
    """
    result = dict(low_rank)
    done: set[tuple[str, ...]] = set()
    for matrix in found:
        paths = tuple(part.path for part in matrix.parts)
        if len(paths) == 1 or paths in done or not any(path in low_rank for path in paths):
            continue
        done.add(paths)
        lows = [low_rank.get(path) for path in paths]
        first = lows[0]
        if first is not None and all(low is not None and _same_input(first, low) for low in lows):
            continue
        result |= _fused(paths, lows, found)
    return result


def _same_input(one: LowRank, other: LowRank) -> bool:
    """Whether two adapters have the same A, bit by bit, and the same factors."""
    return (
        one.lora_A.shape == other.lora_A.shape
        and one.lora_A.tobytes() == other.lora_A.tobytes()
        and np.array_equal(one.ranks, other.ranks)
        and np.array_equal(one.scales, other.scales)
    )


def _fused(paths: tuple[str, ...], lows: list[LowRank | None], found: Iterable[Matrix]) -> dict[str, LowRank]:
    """The adapters of the parts of a fused matrix, with all their A in each."""
    given = [low for low in lows if low is not None]
    has = {path: np.zeros(1) if low is None else low.ranks > 0 for path, low in zip(paths, lows, strict=True)}
    some = np.any(np.broadcast_arrays(*has.values()), 0)
    without = next((path for path, layers in has.items() if np.any(some & ~(layers > 0))), None)
    if without and any(low.magnitude is not None for low in given):
        raise UserError(
            f"adapter.dora=true: {without} has no adapter, and is a part of one matrix with some that have. "
            "Save with adapter=merged"
        )
    shapes = {
        part.path: part.pattern("lora_B", 1).shape
        for matrix in found
        for part in matrix.parts
        if part.path in paths
    }
    at, rslora = int(_experts_in_front(found, paths[0])), given[0].rslora
    A = np.concatenate([low.lora_A for low in given], -1)
    # The common factor of each slice is that of its first part with an adapter; the others' B have the rest.
    scales = np.zeros(given[0].ranks.shape)
    for one in given:
        scales = np.where(scales != 0, scales, one.scales)
    # Slices of a lower rank have zeros in the middle now: every slice has the whole rank, or none.
    ranks = np.where(scales != 0, A.shape[-1], 0)
    alphas = scales * (np.sqrt(ranks) if rslora else ranks)
    made, start = {}, 0
    for path, low in zip(paths, lows, strict=True):
        shape = [*given[0].ranks.shape, *shapes[path]]
        shape[ranks.ndim + at] = A.shape[-1]
        B = np.zeros(shape, np.float32)
        if low is not None:
            end = start + low.lora_A.shape[-1]
            share = np.divide(low.scales, scales, out=np.zeros_like(scales), where=scales != 0)
            along = np.expand_dims(share, tuple(range(ranks.ndim, B.ndim)))
            B[(slice(None),) * (ranks.ndim + at) + (slice(start, end),)] = low.lora_B * along
            start = end
        made[path] = LowRank(A, B, ranks, alphas, rslora, None if low is None else low.magnitude)
    return made


def _rank(low_rank: Mapping[str, LowRank], matrix: Matrix) -> int:
    """The rank of a matrix's adapter; 0 for none."""
    part = matrix.parts[0]
    return int(low_rank[part.path].ranks[part.prefix]) if part.path in low_rank else 0


def config_for(
    low_rank: Mapping[str, LowRank], base: Base, found: list[Matrix], base_name: str
) -> PeftConfig:
    """The config of an adapter that was trained here.

    Its names are as short as they can be without naming a matrix that has no adapter.
    """
    ranks = {matrix.name: _rank(low_rank, matrix) for matrix in found}
    adapted = {name for name, rank in ranks.items() if rank}
    if not adapted:
        raise UserError(f"{base_name}: its adapter is zero everywhere; there is nothing to save")
    dora = any(low.magnitude is not None for low in low_rank.values())
    # PEFT takes names of experts' matrices, wherever they are, for those of joined experts.
    of_experts = expert_modules(base.family.entries(base.config, base.tree))
    modules: list[str] = []
    parameters: list[str] = []
    rules: dict[str, Matrix] = {}
    for matrix in found:
        if matrix.kind == "parameter":
            (parameters if matrix.name in adapted else []).append(matrix.name)
            rules[matrix.name] = matrix
        elif matrix.name.rpartition(".")[2] in of_experts:
            (parameters if matrix.name in adapted else []).append(f"{matrix.name}.weight")
            rules[f"{matrix.name}.weight"] = matrix
        else:
            (modules if matrix.name in adapted else []).append(matrix.name)
            rules[matrix.name] = matrix
    if dora and parameters:
        raise UserError(
            f"adapter.dora=true: PEFT has none for {parameters[0]}, a parameter of experts. Save with "
            "adapter=merged"
        )
    used = [rule for rule in rules if rule in modules or rule in parameters]
    rank_of = {rule: ranks[rules[rule].name] for rule in used}
    alpha_of = {rule: _alpha(low_rank, rules[rule]) for rule in used}
    rank = collections.Counter(rank_of.values()).most_common(1)[0][0]
    alpha = collections.Counter(alpha_of.values()).most_common(1)[0][0]
    module_names = [matrix.name for matrix in found if matrix.kind != "parameter"]
    return PeftConfig(
        base=base_name,
        rank=rank,
        alpha=alpha,
        rslora=next(iter(low_rank.values())).rslora,
        dora=dora,
        targets=short_names(modules, module_names),
        parameters=short_names(parameters, rules, least=2),
        ranks={rule: n for rule, n in rank_of.items() if n != rank},
        alphas={rule: n for rule, n in alpha_of.items() if n != alpha},
    )


def _alpha(low_rank: Mapping[str, LowRank], matrix: Matrix) -> float:
    """The alpha of a matrix's adapter."""
    part = matrix.parts[0]
    return float(low_rank[part.path].alphas[part.prefix])


def short_names(chosen: Iterable[str], names: Collection[str], least: int = 1) -> tuple[str, ...]:
    """The fewest last parts of each chosen name, at least so many, that no other of `names` ends in; a whole
    name where these would begin with a number.

    >>> short_names(["h.0.mlp.proj", "h.1.mlp.proj"], ["h.0.mlp.proj", "h.1.mlp.proj", "h.0.attn.proj"])
    ('mlp.proj',)
    """
    chosen = list(chosen)
    others = [name for name in names if name not in set(chosen)]
    found: dict[str, None] = {}
    for name in chosen:
        parts = name.split(".")
        for count in range(least, len(parts) + 1):
            short = ".".join(parts[-count:])
            if not any(other == short or other.endswith(f".{short}") for other in others):
                break
        found[name if parts[-count].isdecimal() else short] = None
    return tuple(sorted(found))


def config_tree(config: PeftConfig, base: Base) -> dict[str, Any]:
    """The JSON object of adapter_config.json for an adapter that was trained here."""
    number = lambda x: int(x) if float(x).is_integer() else x  # noqa: E731
    transposed = any(
        matrix.kind == "linear"
        and matrix.parts[0].pattern("lora_A", 1).pattern.tensor_dims[1]
        == matrix.parts[0].slice.pattern.pattern.tensor_dims[0]
        for matrix in matrices(base.tensor_map(), separate=False)
    )
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": number(config.alpha),
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "fan_in_fan_out": transposed,
        "target_modules": list(config.targets),
        "target_parameters": list(config.parameters) or None,
        "modules_to_save": None,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": config.ranks,
        "alpha_pattern": {rule: number(alpha) for rule, alpha in config.alphas.items()},
    }
