"""Renamed to llm_jax.slurm.cancel."""

from llm_jax.core.renamed import raise_renamed

raise_renamed("llm_jax.cluster.cancel", "llm_jax.slurm.cancel")
