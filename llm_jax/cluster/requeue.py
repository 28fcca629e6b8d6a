"""Renamed to llm_jax.slurm.requeue."""

from llm_jax.core.renamed import raise_renamed

raise_renamed("llm_jax.cluster.requeue", "llm_jax.slurm.requeue")
