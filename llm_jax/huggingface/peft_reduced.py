"""PiSSA and OLoRA adapters for a base as it is in its files.

Both begin with a part of the base's own weights, which they subtract from the base: it then computes
W - scale A0 B0 + scale A B, where A0 B0 follows from W alone. Without changing the base that is an adapter of
twice the rank, [A, A0] and [B, -B0] (what PEFT's `path_initial_model_for_weight_conversion` saves).

PiSSA (Meng et al. 2024): A0 B0 are the largest singular values and vectors of W. OLoRA (Büyükakyüz 2024): the
first columns of Q and rows of R, where W = Q R.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.huggingface.peft import Base, LowRank, PeftAdapter, Prefix, put, widened
from llm_jax.huggingface.peft_config import scale_of
from llm_jax.huggingface.peft_map import Factor, Matrix, MatrixPart, matrices, targets_of
from llm_jax.huggingface.tensor_layout import whole_box


def unreduced(adapter: PeftAdapter, base: Base, weight: Callable[[str, Prefix], np.ndarray]) -> PeftAdapter:
    """The same adapter for the base's own weights; itself where it doesn't reduce them.

    weight: (path, index along its first dims) → a slice of an array of the base. Raises UserError where the
    matrix is none that PEFT can reduce.
    """
    method = adapter.config.reduced
    if not method:
        return adapter
    low_rank: dict[str, LowRank] = {}
    # The config of the result: only that it is written with `made_here` matters.
    config = dataclasses.replace(adapter.config, reduced="")
    for target in targets_of(adapter.config, matrices(base.tensor_map(), adapter.separate)):
        matrix, rank, alpha = target.matrix, target.rank(config), target.alpha(config)
        if any(part.prefix in adapter.whole.get(part.path, ()) for part in matrix.parts):
            # Of a head that has an adapter PEFT saves the weight too, reduced already.
            low_rank |= {part.path: adapter.low_rank[part.path] for part in matrix.parts}
            continue
        problem = _problem(matrix, method, base)
        if problem:
            raise UserError(f"{adapter.where}: init_lora_weights={method} of {matrix.name}: {problem}")
        W = _matrix(matrix, weight)
        scale = scale_of(alpha, rank, config.rslora)
        A0, B0 = decomposed(W, rank, method, scale)
        first = {"lora_A": A0, "lora_B": B0}
        doubled = alpha * (math.sqrt(2) if config.rslora else 2)
        for part in matrix.parts:
            old, values = adapter.low_rank[part.path], dict[Factor, np.ndarray]()
            values["lora_A"] = np.concatenate(
                [old.lora_A[part.prefix][..., :rank], _read(part, "lora_A", rank, first)], -1
            )
            values["lora_B"] = np.concatenate(
                [old.lora_B[part.prefix][:rank], -_read(part, "lora_B", rank, first)], 0
            )
            if old.magnitude is not None:
                values["magnitude"] = old.magnitude[part.prefix]
            stack = old.ranks.shape
            low = widened(low_rank.get(part.path), stack, values, 2 * rank, part.experts, config)
            low_rank[part.path] = low
            put(low, part.prefix, values, 2 * rank, doubled, part.experts)
    return dataclasses.replace(adapter, config=config, low_rank=low_rank, tree={})


def _problem(matrix: Matrix, method: str, base: Base) -> str:
    """Why PEFT can't reduce a matrix like this; "" if it can."""
    if matrix.kind == "head" and base.tied:
        return "the head is the embedding too, which would change with it. Untie them first"
    if matrix.kind not in ("linear", "head"):
        return "only matrices can be decomposed. Use another initialisation"
    if method == "olora" and _transposed(matrix):
        return "its matrix is stored transposed, for which PEFT has none. Use another initialisation"
    return ""


def _transposed(matrix: Matrix) -> bool:
    """Whether the files have a matrix as [in, out]."""
    part = matrix.parts[0]
    return part.pattern("lora_A", 1).pattern.tensor_dims[1] == part.slice.pattern.pattern.tensor_dims[0]


def _matrix(matrix: Matrix, weight: Callable[[str, Prefix], np.ndarray]) -> np.ndarray:
    """A matrix of the files from the arrays in it: [out, in], float64."""
    W = np.empty(matrix.parts[0].slice.pattern.tensor_shape)
    for part in matrix.parts:
        pattern = part.slice.pattern
        pattern.write(weight(part.path, part.prefix).transpose(pattern.permutation), W)
    return W.T if _transposed(matrix) else W


def decomposed(W: np.ndarray, rank: int, method: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """(A0 [rank, in], B0 [out, rank]) of a matrix [out, in]."""
    if method == "pissa":
        U, S, V = np.linalg.svd(W, full_matrices=False)
        root = np.sqrt(S[:rank] / scale)
        return root[:, None] * V[:rank], U[:, :rank] * root
    Q, R = np.linalg.qr(W)
    return R[:rank], Q[:, :rank]


def _read(part: MatrixPart, factor: Factor, rank: int, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """A factor of a slice's adapter from the tensor of its matrix."""
    pattern = part.pattern(factor, rank)
    tensor = tensors[factor]
    return pattern.read(lambda first, end: tensor[first:end], whole_box(pattern.shape)).astype(np.float32)
