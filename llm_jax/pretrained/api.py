"""`load_model`: a pretrained model as a Python object, for programs that use this package as a library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
from flax import nnx

from llm_jax.layout.layout import Layout
from llm_jax.model.transformer import Transformer
from llm_jax.pretrained.model import open_model


def load_model(
    folder: Path | str,
    dtype: str | None = None,
    layout: Layout | None = None,
    mesh: dict[str, int] | None = None,
    leave_out: Sequence[str] = (),
    adapter: Path | str | None = None,
) -> Transformer:
    """The model of a Hugging Face folder, a GGUF file or a run folder: model(tokens_BT, positions=...,
    segments=...) gives logits_BTV.

    `dtype` is that of weights and computation ("float32", "bfloat16"); None: as in the files, but float32 on
    a CPU, which emulates bfloat16 (a line on stderr says so). Without a layout the model is on one device;
    with one, call it inside `jax.jit` and `jax.set_mesh(model.place.mesh)`. `leave_out`: names of tensors to
    exclude, with * for any characters. `adapter`: a PEFT folder, whose adapter is merged into the weights, in
    float32. The tokenizer is not read. Raises UserError for a folder that can't be
    read.
    """
    pretrained = open_model(
        folder, layout=layout, mesh=mesh, dtype=dtype, leave_out=leave_out, adapter=adapter, tokenizer=False
    )
    if layout is not None:
        return pretrained.model
    graph, weights = nnx.split(nnx.eval_shape(lambda: Transformer(pretrained.config, rngs=nnx.Rngs(0))))
    # Arrays without a mesh, so that the model runs outside of `jax.set_mesh` too.
    leaves = [array.addressable_data(0) for array in jax.tree.leaves(pretrained.parameters)]
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(weights), leaves))
