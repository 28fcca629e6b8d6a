"""Renamed to llm_jax.slurm.cancel."""

from llm_jax.core.renamed import moved

moved("llm_jax.cluster.cancel", "llm_jax.slurm.cancel")
