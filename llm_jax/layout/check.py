"""Checks that a layout can split a model, before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llm_jax.layout.layout import MeshPlacement
from llm_jax.model.config import ModelConfig


def check_model(
    model: ModelConfig, place: MeshPlacement, more: Mapping[str, tuple[int, str]] = MappingProxyType({})
) -> None:
    """Raises UserError for a model that the layout can't split. more: other dims to check, dim → (size, key
    that sets it)."""
    dims = ("layers", "vocab", "embed", "heads", "kv_heads", "head_dim", "mlp")
    place.check_divides(
        {**more, **{dim: (size, f"model.{dim}") for dim in dims if (size := getattr(model, dim)) is not None}}
    )
    moe = model.moe
    if not model.sparse_layers:
        return
    assert moe.mlp
    place.check_divides({"experts": (moe.experts, "model.moe.experts"), "mlp": (moe.mlp, "model.moe.mlp")})
    place.check_divides({"mlp": (moe.shared_mlp, "model.moe.shared_mlp")})
