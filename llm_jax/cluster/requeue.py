"""Renamed to llm_jax.slurm.requeue."""

from llm_jax.core.renamed import moved

moved("llm_jax.cluster.requeue", "llm_jax.slurm.requeue")
