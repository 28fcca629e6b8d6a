"""Renamed to llm_jax.slurm.status."""

from llm_jax.core.renamed import moved

moved("llm_jax.cluster.status", "llm_jax.slurm.status")
