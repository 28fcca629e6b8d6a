"""The formats of Hugging Face model folders: configuration, tensors, safetensors, tokenizers."""

from llm_jax.core.renamed import raise_renamed

MOVED = ("load_model", "save_model")
"""Functions that moved to `llm_jax.pretrained`."""


def __getattr__(name: str) -> None:
    if name in MOVED:
        raise_renamed(f"llm_jax.huggingface.{name}", f"llm_jax.pretrained.{name}")
    raise AttributeError(f"llm_jax.huggingface has no {name}")
