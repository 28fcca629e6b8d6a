"""Renamed to llm_jax.pretrained.save."""

from llm_jax.core.renamed import raise_renamed

raise_renamed("llm_jax.huggingface.save", "llm_jax.pretrained.save")
