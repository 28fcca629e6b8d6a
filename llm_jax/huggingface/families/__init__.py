"""The model families: one module each, found by its name (`llm_jax.huggingface.family`)."""
