"""Compares adapters of random shapes with the PEFT library, in both directions.

`python -m tools.check_adapters [family ...] [seeds=5] [first=0]`

For each base, a tiny random model of a family: an adapter that PEFT makes, with random settings, must give
the same logits here, and the same bytes when it is written again; one that is made here, with random ranks,
factors and layers, must load in PEFT, and compute there what transformers computes with its products added to
the base's weights. Needs the extra `reference`. Exit code 1 if anything differs.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import huggingface
from llm_jax.core.errors import UserError
from llm_jax.huggingface.peft import Base, LowRank, read_peft
from llm_jax.huggingface.peft_map import matrices
from llm_jax.huggingface.peft_write import made_here, write_peft
from llm_jax.huggingface.tensor_layout import whole_box
from llm_jax.pretrained.adapter import base_of
from llm_jax.pretrained.source import open_source
from tools import adapter_reference as peft
from tools import huggingface_reference as reference
from tools.huggingface_cases import random_case

READ, WRITTEN = 1e-4, 1e-5
"""Largest difference of a logit, for adapters of PEFT here (two libraries' float32), and for ours in PEFT (float64)
from the base with W + scale A B in its place."""
LENGTH = 24


def random_settings(names: list[str], family: str, rng: np.random.Generator) -> dict[str, Any]:
    """Arguments of LoraConfig; names: of the base's linear modules, whole."""
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    leaves = sorted({name.rpartition(".")[2] for name in names} - {"lm_head", "embed_out"})
    some = [str(leaf) for leaf in rng.permutation(leaves)[: rng.integers(1, len(leaves) + 1)]]
    settings: dict[str, Any] = {
        "r": int(pick(1, 2, 3, 4)), "lora_alpha": int(pick(1, 3, 8)), "use_rslora": bool(pick(False, True)),
        "use_dora": bool(pick(False, True)), "fan_in_fan_out": family == "gpt2",
        "target_modules": pick("all-linear", some, some, "|".join(rf".*\.{leaf}" for leaf in some)),
    }  # fmt: skip
    if isinstance(settings["target_modules"], list):
        if rng.random() < 0.3:
            settings["layers_to_transform"] = [0]
        if rng.random() < 0.5:
            settings["rank_pattern"] = {some[0]: int(pick(1, 2, 5))}
            settings["alpha_pattern"] = {some[-1]: int(pick(2, 7))}
    if rng.random() < 0.2:
        settings["modules_to_save"] = (
            [pick("lm_head", "norm")] if family not in ("gpt2", "gpt_neox") else None
        )
    return settings


def random_low_rank(base: Base, rng: np.random.Generator) -> dict[str, LowRank]:
    """An adapter as a run could have it, on some of the weights, each with its own ranks and factors."""
    found: dict[str, LowRank] = {}
    of_blocks = [m for m in matrices(base.tensor_map(), separate=False) if m.kind in ("linear", "parameter")]
    arrays = {part.path: part for matrix in of_blocks for part in matrix.parts}
    dora = not any(part.experts for part in arrays.values()) and rng.random() < 0.4
    rslora = bool(rng.random() < 0.5)
    for path, part in arrays.items():
        if rng.random() < 0.3 and not dora and len(found):
            continue
        layers, rank = base.shapes[path][0], int(rng.integers(1, 4))
        A, B, m = (
            0.07 * rng.standard_normal((layers, *part.pattern(factor, rank).shape)).astype(np.float32)
            for factor in ("lora_A", "lora_B", "magnitude")
        )
        ranks = np.where(rng.random(layers) < 0.8, rank, 0)
        ranks[0] = rank
        A *= (ranks > 0).reshape(-1, *[1] * (A.ndim - 1))
        found[path] = LowRank(
            A, B, ranks, np.full(layers, float(rng.integers(1, 9))), rslora, 1 + np.abs(m) if dora else None
        )
    return found


def check(family: str, seed: int, folder: Path) -> list[str]:
    """Two results in a line each, which begin with "same", "refused", "skipped" or "DIFFERS"."""
    case = dataclasses.replace(random_case(family, seed), hub=False, dtype="float32", shards=1, drop=())
    rng = np.random.default_rng([seed, 2])
    base_folder = folder / "base"
    theirs = reference.build(case, seed)
    reference.write(theirs, case, base_folder, seed)
    tokens_BT = rng.integers(4, theirs.config.vocab_size, (2, LENGTH)).astype(np.int32)
    base = base_of(open_source(base_folder))
    return [
        read(family, base, base_folder, tokens_BT, folder, rng),
        written(base, base_folder, tokens_BT, folder, rng),
    ]


def read(
    family: str, base: Base, base_folder: Path, tokens_BT: np.ndarray, folder: Path, rng: np.random.Generator
) -> str:
    """An adapter of PEFT, here."""
    linear = [m.name for m in matrices(base.tensor_map(), separate=False) if m.kind == "linear"]
    settings = random_settings(linear, family, rng)
    try:
        peft.make(base_folder, settings, folder / "theirs", int(rng.integers(1 << 30)))
    except ValueError as error:
        return f"skipped: PEFT refuses {settings}: {str(error)[:100]}"
    expected = peft.logits(base_folder, folder / "theirs", tokens_BT)
    exact = reference.logits(peft.load(base_folder, folder / "theirs").double(), tokens_BT)
    rounding = float(np.abs(exact - expected).max())
    if rounding > 10 * READ:
        return f"skipped: an expert is chosen by a hair ({rounding:.1e})"
    try:
        model = huggingface.load_model(base_folder, dtype="float32", adapter=folder / "theirs")
    except UserError as error:
        return f"refused: {error}"
    ours = np.asarray(jax.jit(lambda tokens: model(tokens))(jnp.asarray(tokens_BT)))
    worst = float(np.abs(ours - exact).max())
    (folder / "again").mkdir()
    write_peft(read_peft(folder / "theirs", base), base, folder / "again")
    same = all(
        (folder / "again" / f).read_bytes() == (folder / "theirs" / f).read_bytes() for f in peft.FILES
    )
    verdict = "same" if same and worst < max(READ, 4 * rounding) else "DIFFERS"
    return (
        f"{verdict}: read {worst:.1e} (theirs {rounding:.1e}), of {exact.std():.1f}, bytes {same}; {settings}"
    )


def written(
    base: Base, base_folder: Path, tokens_BT: np.ndarray, folder: Path, rng: np.random.Generator
) -> str:
    """An adapter of ours, in PEFT."""
    (folder / "ours").mkdir()
    try:
        low_rank = random_low_rank(base, rng)
        adapter = made_here(low_rank, base, str(base_folder))
        write_peft(adapter, base, folder / "ours")
    except UserError as error:
        return f"refused: {error}"
    changed = reference.read(base_folder).double()
    add(changed, low_rank, base)
    expected = reference.logits(changed, tokens_BT)
    found = reference.logits(peft.load(base_folder, folder / "ours").double(), tokens_BT)
    worst = float(np.abs(found - expected).max())
    verdict = "same" if worst < WRITTEN else "DIFFERS"
    config = adapter.config
    return (
        f"{verdict}: written {worst:.1e}, of {expected.std():.1f}; r={config.rank} rslora={config.rslora} "
        f"dora={config.dora} {len(config.targets)} targets, {len(config.parameters)} parameters"
    )


def rows(tensor: np.ndarray, first: int, end: int) -> np.ndarray:
    """The rows of a tensor from `first` to before `end`."""
    return tensor[first:end]


def add(model: Any, low_rank: dict[str, LowRank], base: Base) -> None:
    """Puts W + scale A B, of DoRA scaled to its magnitude, into a model of transformers, in its dtype."""
    for matrix in matrices(base.tensor_map(), separate=False):
        name = matrix.name if matrix.kind == "parameter" else f"{matrix.name}.weight"
        for part in matrix.parts:
            low, at = low_rank.get(part.path), part.prefix
            if low is None or not low.ranks[at]:
                continue
            tensor = model.get_parameter(name).detach().numpy()
            pattern, lead = part.slice.pattern, 1 if part.experts else 0
            W = pattern.read(functools.partial(rows, tensor), whole_box(pattern.shape))
            A, B = (x[at].astype(np.float64) for x in (low.lora_A, low.lora_B))
            ins = A.ndim - 1 - lead
            A, B = A.reshape(*W.shape[:lead], -1, A.shape[-1]), B.reshape(*W.shape[:lead], A.shape[-1], -1)
            W = W + float(low.scales[at]) * (A @ B).reshape(W.shape)
            if low.magnitude is not None:
                W *= low.magnitude[at] / np.sqrt(np.sum(W**2, tuple(range(lead, lead + ins)), keepdims=True))
            pattern.write(W.transpose(pattern.permutation), tensor)


def main() -> None:
    """Runs the checks of a command line."""
    families = [word for word in sys.argv[1:] if "=" not in word] or list(reference.FAMILIES)
    settings = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    first, bad = int(settings.get("first", 0)), 0
    for family in families:
        for seed in range(first, first + int(settings.get("seeds", 5))):
            with tempfile.TemporaryDirectory() as temporary:
                for line in check(family, seed, Path(temporary)):
                    bad += line.startswith("DIFFERS")
                    print(f"{family} {seed}: {line}", flush=True)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
