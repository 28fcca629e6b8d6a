"""Adapters beside a base's weights, between PEFT folders and runs: `adapter.from=FOLDER`, and a run's adapter
to be saved.

A run has adapters on the linear maps of its blocks (`llm_jax.model.adapters`), in arrays of its layers
stacked, which are those of `huggingface.peft.LowRank`.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.huggingface.peft import Base, LowRank, PeftAdapter, read_peft
from llm_jax.huggingface.peft_config import scale_of
from llm_jax.huggingface.peft_reduced import unreduced
from llm_jax.model.adapters import (
    LORA_A,
    LORA_B,
    MAGNITUDE,
    REDUCING,
    SCALING,
    AdaptedWeights,
    AdapterConfig,
    layer_names,
)
from llm_jax.pretrained.adapter import TABLES, base_of, on_host
from llm_jax.pretrained.source import ModelSource
from llm_jax.train.state import TrainModel

ADAPTER = (LORA_A, LORA_B, MAGNITUDE, SCALING)
"""The suffixes of the arrays of an adapter."""


def adapter_config(path: Path, source: ModelSource) -> AdapterConfig:
    """The configuration of a run that trains the adapter of a PEFT folder further.

    source: its base. Raises UserError for an adapter that a run can't have.
    """
    model = source.experiment.model
    model = model.resolved(model.vocab or 1)  # of no effect on linear maps, where it isn't known yet
    adapter = read_peft(path, base_of(source, model))
    check_trainable(adapter)
    low_rank = {name: of_layers(low) for name, low in adapter.low_rank.items()}
    # PiSSA and OLoRA become adapters of twice the rank (`unreduced`), with the same factor.
    twice = 2 if adapter.config.reduced else 1
    ranks, alphas = {}, {}
    for name, low in low_rank.items():
        for layer, rank, scale in zip(layer_names(name, model), low.ranks, low.scales, strict=True):
            if rank:
                ranks[layer] = int(rank) * twice
                alphas[layer] = _alpha(float(scale), ranks[layer], low.rslora)
    most = lambda found: collections.Counter(found.values()).most_common(1)[0][0]  # noqa: E731
    rank, alpha = most(ranks), most(alphas)
    whole = {name: layer_names(name, model) for name in low_rank}
    return AdapterConfig(
        rank=rank,
        alpha=alpha,
        targets="|".join(_patterns(ranks, whole)),
        rslora=adapter.config.rslora,
        dora=adapter.config.dora,
        peft_folder=str(path),
        ranks=_grouped({layer: n for layer, n in ranks.items() if n != rank}, whole),
        alphas=_grouped({layer: n for layer, n in alphas.items() if n != alpha}, whole),
    )


def beyond_blocks(adapter: PeftAdapter) -> list[str]:
    """The arrays that an adapter changes besides the linear maps of blocks."""
    return [*(name for name in TABLES if name in adapter.low_rank), *adapter.whole]


def check_trainable(adapter: PeftAdapter) -> None:
    """Raises UserError for an adapter with more than factors on the linear maps of blocks."""
    if more := beyond_blocks(adapter):
        problem = "an adapter" if more[0] in adapter.low_rank else "weights of its own"
        raise UserError(
            f"adapter.from={adapter.where}: has {problem} for {more[0]}, and a run's adapter is on the "
            f"linear maps of the blocks only. Begin with the merged model: from={adapter.where}"
        )


def _alpha(scale: float, rank: int, rslora: bool) -> float:
    """The alpha with which an adapter of this rank has a factor."""
    return round(scale / scale_of(1.0, rank, rslora), 9)


def _patterns(layers: Mapping[str, Any], whole: Mapping[str, list[str]]) -> list[str]:
    """Regular expressions for the layers of weights: the weight's name where they are all of its layers."""
    found = []
    for name, its_layers in whole.items():
        mine = [layer for layer in its_layers if layer in layers]
        found += [re.escape(one) for one in ([name] if mine == its_layers else mine)]
    return found


def _grouped(values: Mapping[str, Any], whole: Mapping[str, list[str]]) -> dict[str, Any]:
    """Values of layers by regular expression."""
    found = {}
    for value in dict.fromkeys(values.values()):
        its = {layer: n for layer, n in values.items() if n == value}
        found["|".join(_patterns(its, whole))] = value
    return found


def of_layers(low: LowRank) -> LowRank:
    """The adapter with one rank and one factor for each layer; where experts have different ones, B is
    multiplied instead."""
    if low.ranks.ndim < 2:
        return low
    scales = low.scales
    ranks = low.ranks.max(1)
    first = np.where(scales > 0, scales, np.inf).min(1)
    first = np.where(np.isfinite(first), first, 0.0)
    ratio = np.divide(scales, first[:, None], out=np.zeros_like(scales), where=first[:, None] > 0)
    along = np.expand_dims(ratio, tuple(range(2, low.lora_B.ndim)))
    B = low.lora_B if np.all((ratio == 1) | (low.ranks == 0)) else (low.lora_B * along).astype(np.float32)
    alphas = np.array(
        [_alpha(s, int(r), low.rslora) if r else 1.0 for s, r in zip(first, ranks, strict=True)]
    )
    return dataclasses.replace(low, lora_B=B, ranks=ranks, alphas=alphas)


def adapter_arrays(
    path: Path, base: Base, weights: Mapping[str, jax.Array], model: TrainModel
) -> dict[str, np.ndarray]:
    """The arrays of a run's adapter, by name, from a PEFT folder; weights: the base's, by name.

    Raises UserError where they aren't those of the run's configuration: the folder has changed.
    """
    adapter = read_peft(path, base)
    check_trainable(adapter)
    adapter = unreduced(adapter, base, lambda name, at: on_host(weights[name][at], model))
    found: dict[str, np.ndarray] = {}
    for name, low in adapter.low_rank.items():
        low = of_layers(low)
        found |= {f"{name}.{LORA_A}": low.lora_A, f"{name}.{LORA_B}": low.lora_B}
        found[f"{name}.{SCALING}"] = low.scales.astype(np.float32)
        if low.magnitude is not None:
            found[f"{name}.{MAGNITUDE}"] = low.magnitude
    wanted = {
        name: w.get_value().shape
        for name, w in model.adapted.arrays.items()
        if name.rpartition(".")[2] in ADAPTER
    }
    shapes = {name: array.shape for name, array in found.items()}
    if shapes != wanted:
        different = next(name for name in {**wanted, **shapes} if wanted.get(name) != shapes.get(name))
        raise UserError(
            f"adapter.from={path}: its adapter is another one than that of this run's configuration "
            f"({different}). Leave the other keys adapter.* out, or choose another run_dir"
        )
    return found


def adapter_of_run(
    adapted: AdaptedWeights, arrays: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray]
) -> dict[str, LowRank]:
    """A run's adapter by weight, for the base as it was before the run.

    arrays: the adapter's, by name. first: those that it began with, if it was a part of the base's weights
    (`adapter.start=pissa` or `olora`), which are subtracted from these again: a rank twice as large.
    """
    config, found = adapted.config, {}
    for name, target in adapted.targets.items():
        A, B = arrays[f"{name}.{LORA_A}"], arrays[f"{name}.{LORA_B}"]
        ranks = np.array(target.ranks)
        if config.start in REDUCING:
            experts = adapted.arrays[f"{name}.{LORA_B}"].dims[0] == "experts"
            A = np.concatenate([A, first[f"{name}.{LORA_A}"]], -1)
            B = np.concatenate([B, -first[f"{name}.{LORA_B}"]], 1 + experts)
            ranks = np.where(ranks > 0, A.shape[-1], 0)  # zeros of a lower rank are in the middle now
        alphas = [
            _alpha(scale, int(rank), config.rslora) if rank else 1.0
            for scale, rank in zip(target.scalings, ranks, strict=True)
        ]
        magnitude = arrays.get(f"{name}.{MAGNITUDE}")
        found[name] = LowRank(A, B, ranks, np.array(alphas), config.rslora, magnitude)
    return found
