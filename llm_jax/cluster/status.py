"""Renamed to llm_jax.slurm.status."""

from llm_jax.core.renamed import raise_renamed

raise_renamed("llm_jax.cluster.status", "llm_jax.slurm.status")
