"""A model whose layers are separate modules with arrays of their own, placed for reading a few positions at a
time: a product with a slice of stacked weights would copy the slice at every step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from llm_jax.generate.decode_layout import decoding_place
from llm_jax.generate.fused_mlp import fuse_gate_and_up
from llm_jax.model.config import ModelConfig
from llm_jax.train.program_options import program_options
from llm_jax.train.state import TrainModel


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class UnstackedGraphs:
    """The graphs (`nnx.GraphDef`) and configurations of a model whose layers are separate modules. Holds no
    arrays."""

    outer: Any
    """The graph of the model without its blocks: embedding, final norm and head."""
    layers: tuple[Any, ...]
    """The graph of each block."""
    configs: tuple[ModelConfig, ...]
    """The configuration of each block."""


class UnstackedModel:
    """A model's graphs and weights by layer. Its experts take every token (`dispatch="dropless"`): which
    tokens a capacity drops would depend on what else is read."""

    def __init__(self, model: TrainModel):
        """Traces the model; nothing is compiled yet."""
        config = model.config
        config = dataclasses.replace(
            config, remat="none", offload="", moe=dataclasses.replace(config.moe, dispatch="dropless")
        )
        self.place = decoding_place(model.place, config)
        self.model = model.placed(self.place, config)
        self.options = program_options(self.model)
        with jax.set_mesh(self.place.mesh):
            self.graphs, _ = jax.eval_shape(self.unstack_layers, self.model.abstract)

    def unstack_layers(self, parameters: Any) -> tuple[UnstackedGraphs, Any]:
        """(graphs, (weights outside the blocks, [weights of each block])), gate and up projections fused."""
        model = self.model.model(parameters)
        blocks = [block for _, block, _ in model.layers_in_order()]
        for block in blocks:
            fuse_gate_and_up(block)
        layers = [nnx.split(block) for block in blocks]
        for stack in ("blocks", "dense_blocks"):
            if hasattr(model, stack):
                delattr(model, stack)
        outer_graph, outer = nnx.split(model)
        configs = tuple(self.model.config.of_layer(i) for i in range(len(layers)))
        graphs = UnstackedGraphs(outer_graph, tuple(graph for graph, _ in layers), configs)
        return graphs, (outer, [weights for _, weights in layers])

    def weights(self, parameters: Any) -> Any:
        """The weights that the programs take, from parameters stacked and placed as for training."""
        with jax.set_mesh(self.place.mesh):
            stored = jax.device_put(parameters, self.model.shardings("stored"))
            return self.model.jit(lambda stacked: self.unstack_layers(stacked)[1])(stored)
