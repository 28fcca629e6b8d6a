"""The formats of Hugging Face model folders: configuration, tensors, safetensors, tokenizers, adapters.

`load_model` and `save_model` read and write such folders whole. They are those of `llm_jax.pretrained`, which
knows runs too, under the name where they are looked for.
"""

from llm_jax.core.renamed import also_in

__getattr__ = also_in(__name__, "llm_jax.pretrained", ("load_model", "save_model"))
