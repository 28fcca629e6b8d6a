"""The train state, and how it comes to be: initialised, under jit, where the layout stores it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llm_jax.layout.layout import MeshPlacement
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Table
from llm_jax.model.parametrization import multipliers
from llm_jax.model.router import bias_change
from llm_jax.model.transformer import Transformer
from llm_jax.model.weights import ShardedParam, Weight, stored_dims
from llm_jax.train.optimizer import OptimizerConfig, ParameterInfo, make_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that changes from step to step, and all that a checkpoint holds."""

    step: jax.Array
    """Steps done, int32 []."""
    parameters: Any
    """The model's weights: nested dicts of arrays in the parameter dtype."""
    moments: Any
    """The optimizer's state, in float32 whatever the parameters are in."""
    average: Any
    """Exponential moving average of the parameters, in float32 (in bfloat16 it would stand still), or None."""
    bad_steps: jax.Array
    """Updates skipped so far because loss or gradient was not finite, int32 []."""
    bad_in_a_row: jax.Array
    """How many of those just now, one after the other, int32 []."""


class TrainModel:
    """The model's graph, the placement of its weights and its optimizer: what the jitted functions are made of."""

    numbers: Mapping[str, jax.Array] = MappingProxyType({})
    """Values of the optimizer's configuration, by key, that are arrays of the traced program and not its constants."""

    def __init__(self, model: ModelConfig, optimizer: OptimizerConfig, place: MeshPlacement, ema_decay: float = 0.0):
        self.config, self.place, self.ema_decay = model, place, ema_decay
        abstract = nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0), place=place))
        self.graph, weights = nnx.split(abstract)
        self.structure = jax.tree.structure(weights)
        is_weight = lambda x: isinstance(x, Weight)  # noqa: E731
        of = lambda f: pure(jax.tree.map(f, weights, is_leaf=is_weight))  # noqa: E731
        self.abstract = of(lambda w: w.get_value())
        self.dims = of(lambda w: Leaf(stored_dims(w)))
        self.info = of(lambda w: ParameterInfo(w.dims, w.stacked, multipliers(model, w.dims, w.stacked)))
        self.optimizer = optimizer

    def model(self, parameters: Any, masters: Any = None) -> Transformer:
        """The model with these parameters. With `masters` (see `master_params`) these get the gradients."""
        leaves = jax.tree.leaves(parameters)
        if masters is not None:
            pairs = zip(jax.tree.leaves(masters), leaves, strict=True)
            leaves = [master if jax.typeof(master) == jax.typeof(stored) else ShardedParam(master, stored) for master, stored in pairs]
        return nnx.merge(self.graph, jax.tree.unflatten(self.structure, leaves))

    def master_params(self, parameters: Any) -> Any:
        """The parameters in float32 where their gradients, moments and updates are: the table `optimizer`."""
        return in_float32(self.reshard_to(parameters, "optimizer"))

    def shardings(self, table: Table) -> Any:
        """Where each parameter lives according to one of the layout's tables."""
        return jax.tree.map(lambda leaf, w: self.place.sharding(leaf.value, table, w.shape), self.dims, self.abstract)

    def reshard_to(self, parameters: Any, table: Table) -> Any:
        """Arrays shaped like the parameters, moved to where a table says."""
        return jax.tree.map(jax.sharding.reshard, parameters, self.shardings(table))

    def update(self, grads: Any, moments: Any, masters: Any) -> tuple[Any, Any]:
        """(updates for a learning rate of one, new moments), made where the moments are.

        How a matrix algorithm (Muon) divides over devices is left to XLA.
        """

        def update(numbers: dict[str, Any], *arrays: Any) -> tuple[Any, Any]:
            return make_optimizer(dataclasses.replace(self.optimizer, **numbers), self.info).update(*arrays)

        if set(self.place.manual_axes) == set(self.place.mesh.axis_names):  # every device is on its own
            return update(dict(self.numbers), grads, moments, masters)
        master_specs = jax.tree.map(lambda s: s.spec, self.shardings("optimizer"))
        moment_specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, moments)
        anywhere = jax.sharding.auto_axes(update, axes=self.place.mesh.axis_names, out_sharding=(master_specs, moment_specs))
        return anywhere(dict(self.numbers), grads, moments, masters)

    def with_numbers(self, numbers: Mapping[str, jax.Array]) -> TrainModel:
        """The same with values of the optimizer's configuration that the caller traces."""
        program = copy.copy(self)
        program.numbers = numbers
        return program

    def balanced(self, updates: Any, load_LE: jax.Array) -> Any:
        """The updates with those of the routers' biases as the experts' loads ask for: no optimizer has a say in them."""
        moe = self.config.moe
        if not (moe.experts and moe.bias):
            return updates
        blocks = updates["blocks"]
        return {**updates, "blocks": {**blocks, "mlp": {**blocks["mlp"], "bias": bias_change(moe, load_LE)}}}

    def init(self, seed: jax.Array) -> TrainState:
        """A new state. To be jitted: every device makes only its own part of the weights."""
        _, weights = nnx.split(Transformer(self.config, rngs=nnx.Rngs(params=jax.random.key(seed)), place=self.place))
        return self.init_with(self.reshard_to(pure(weights), "stored"))

    def init_with(self, parameters: Any) -> TrainState:
        """A new state with these weights. To be jitted."""
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            step=zero,
            parameters=parameters,
            moments=make_optimizer(self.optimizer, self.info).init(self.master_params(parameters)),
            average=in_float32(jax.tree.map(jnp.copy, parameters)) if self.ema_decay else None,
            bad_steps=zero,
            bad_in_a_row=zero,
        )

    def new_state(self, seed: int) -> TrainState:
        """A new state on the devices of the mesh."""
        with jax.set_mesh(self.place.mesh):
            return self.jitted_init(jnp.uint32(seed))

    def state_with(self, parameters: Any) -> TrainState:
        """A new state with weights that are on the devices of the mesh. They are given away."""
        with jax.set_mesh(self.place.mesh):
            return jax.jit(self.init_with, donate_argnums=0)(parameters)

    @functools.cached_property
    def jitted_init(self) -> Any:
        """`init`, compiled once for all seeds."""
        return jax.jit(self.init)

    def abstract_state(self) -> TrainState:
        """The state's shapes, dtypes and shardings, without arrays: what a checkpoint is restored into."""
        with jax.set_mesh(self.place.mesh):
            shapes = jax.eval_shape(self.init, jax.ShapeDtypeStruct((), jnp.uint32))  # the devices may be absent
        mesh = self.place.mesh

        def with_mesh(x):
            spec = x.sharding.spec if x.sharding else jax.sharding.PartitionSpec()  # counters are on no mesh: everywhere
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))

        return jax.tree.map(with_mesh, shapes)

    def parameter_count(self) -> int:
        """Numbers in all weights."""
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self.abstract))


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Keeps a tuple from being taken for a branch of a tree."""

    value: Any


def in_float32(tree: Any) -> Any:
    """The arrays of a tree in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def pure(weights: Any) -> dict:
    """An nnx state as nested dicts of its leaves."""
    if isinstance(weights, nnx.Variable):
        return weights.get_value()
    if hasattr(weights, "items"):
        return {key: pure(value) for key, value in sorted(weights.items())}
    return weights
