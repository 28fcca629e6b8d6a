"""Renamed to llm_jax.pretrained.load."""

from llm_jax.core.renamed import raise_renamed

raise_renamed("llm_jax.huggingface.load", "llm_jax.pretrained.load")
