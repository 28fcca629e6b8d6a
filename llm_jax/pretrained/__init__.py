"""Trained models wherever they came from: opened, imported and exported.

Functions are imported on first use: commands set up the environment of JAX before it is imported.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_jax.pretrained.api import load_model as load_model
    from llm_jax.pretrained.save import save_model as save_model

__all__ = ["load_model", "save_model"]


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from llm_jax.pretrained.api import load_model

        return load_model
    if name == "save_model":
        from llm_jax.pretrained.save import save_model

        return save_model
    raise AttributeError(f"llm_jax.pretrained has no {name}")
