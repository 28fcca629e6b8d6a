"""Open models as a library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
from flax import nnx

from llm_jax.layout.layout import Layout
from llm_jax.model.transformer import Transformer
from llm_jax.pretrained.model import open_model


def load_model(
    folder: Path | str, dtype: str | None = None, layout: Layout | None = None, mesh: dict[str, int] | None = None, leave_out: Sequence[str] = ()
) -> Transformer:
    """The model in a folder of Hugging Face's (or a run folder): model(tokens_BT, positions=..., segments=...) gives logits_BTV.

    dtype: "float32" or "bfloat16", of weights and of what is computed; None: as the files are. On one device, unless there is a layout:
    then it is to be called inside `jax.jit` and `jax.set_mesh(model.place.mesh)`. leave_out: names, with * for anything, of tensors to do without.
    The tokenizer isn't read. Raises UserError for what can't be read.
    """
    opened = open_model(folder, layout=layout, mesh=mesh, dtype=dtype, leave_out=leave_out, tokenizer=False)
    if layout is not None:
        return opened.model
    graph, weights = nnx.split(nnx.eval_shape(lambda: Transformer(opened.config, rngs=nnx.Rngs(0))))
    leaves = [array.addressable_data(0) for array in jax.tree.leaves(opened.parameters)]  # without a mesh, the model runs anywhere
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(weights), leaves))
