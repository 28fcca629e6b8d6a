"""Renamed to llm_jax.pretrained.save."""

from llm_jax.core.renamed import moved

moved("llm_jax.huggingface.save", "llm_jax.pretrained.save")
