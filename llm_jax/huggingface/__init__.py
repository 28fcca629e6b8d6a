"""Open models in and out: folders as Hugging Face's libraries write and read them.

The functions are imported when they are used: commands of this package set up JAX's surroundings before it is imported.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_jax.huggingface.library import load_model as load_model
    from llm_jax.huggingface.save import save_model as save_model

__all__ = ["load_model", "save_model"]


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from llm_jax.huggingface.library import load_model

        return load_model
    if name == "save_model":
        from llm_jax.huggingface.save import save_model

        return save_model
    raise AttributeError(f"llm_jax.huggingface has no {name}")
