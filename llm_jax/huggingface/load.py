"""Renamed to llm_jax.pretrained.load."""

from llm_jax.core.renamed import moved

moved("llm_jax.huggingface.load", "llm_jax.pretrained.load")
