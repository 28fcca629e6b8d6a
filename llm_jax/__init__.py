"""llm_jax: a lab bench for language-model science, in JAX and Flax NNX."""

__version__ = "0.1.0"
