"""The command `python -m llm_jax.huggingface.save`: that of `llm_jax.pretrained.save`."""

from llm_jax.core.renamed import run_main_of

if __name__ == "__main__":
    run_main_of("llm_jax.pretrained.save")
