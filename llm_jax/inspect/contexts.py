"""Vectors of one word in two contexts, layer by layer: equal in the embedding, and more and more different as
context is mixed in.

After Ethayarajh 2019, "How contextual are contextualized word representations?".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class WordInContexts:
    """A word's vectors in two contexts: means of the residual stream over its tokens, before the first layer
    and after each."""

    word: str
    contexts: tuple[str, str]
    positions: tuple[list[int], list[int]]
    """Positions of the word's tokens in each context."""
    alike: bool
    """True if the word has the same token ids in both contexts."""
    vectors: np.ndarray
    """float32 [2, L + 1, D]."""
    baseline: np.ndarray
    """float32 [L + 1]: mean cosine similarity over all pairs of different tokens of the two contexts, for
    comparison."""

    @property
    def cosines(self) -> np.ndarray:
        """float32 [L + 1]: the cosine similarity of the word's two vectors."""
        return np.array([cosine(a, b) for a, b in zip(*self.vectors, strict=True)], np.float32)

    @property
    def path(self) -> np.ndarray:
        """float32 [2, L + 1, 2]: the vectors, scaled to unit length, projected onto their two principal
        axes."""
        unit = self.vectors / np.maximum(np.linalg.norm(self.vectors, axis=-1, keepdims=True), 1e-30)
        return principal_axes(unit.reshape(-1, unit.shape[-1]))[0].reshape(2, -1, 2)

    @property
    def explained(self) -> np.ndarray:
        """float32 [2]: the share of the variance along each axis."""
        unit = self.vectors / np.maximum(np.linalg.norm(self.vectors, axis=-1, keepdims=True), 1e-30)
        return principal_axes(unit.reshape(-1, unit.shape[-1]))[1]

    def to_json(self) -> dict[str, Any]:
        """Plain data for inspect.json; the vectors are left out."""
        return {
            "word": self.word,
            "contexts": self.contexts,
            "positions": self.positions,
            "same_tokens": self.alike,
            "cosine": self.cosines.tolist(),
            "baseline_cosine": self.baseline.tolist(),
            "path": self.path.tolist(),
            "explained": self.explained.tolist(),
        }


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine similarity of two vectors; 0 if one is zero."""
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size else 0.0


def principal_axes(points_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coordinates [N, 2] on the two axes of largest variance, their shares of the variance [2]). Each axis's
    largest entry is positive."""
    centred = points_ND.astype(np.float64) - points_ND.mean(0, dtype=np.float64)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    axes = np.concatenate([axes, np.zeros((2, axes.shape[1]))])[:2]
    sizes = np.concatenate([sizes, np.zeros(2)])
    axes *= np.where(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1) < 0, -1, 1)
    total = float(np.sum(sizes**2)) or 1.0
    return (centred @ axes.T).astype(np.float32), (sizes[:2] ** 2 / total).astype(np.float32)


def mean_pair_cosine(x_ND: np.ndarray, ids: np.ndarray) -> float:
    """Mean cosine similarity over all pairs of vectors whose token ids differ; NaN if no ids differ."""
    unit = x_ND / np.maximum(np.linalg.norm(x_ND, axis=-1, keepdims=True), 1e-30)
    differ = ids[:, None] != ids[None]
    return float(np.mean((unit @ unit.T)[differ])) if differ.any() else float("nan")
