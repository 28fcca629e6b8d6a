"""Renamed: the processes of a run are in llm_jax.processes, Slurm jobs in llm_jax.slurm."""
