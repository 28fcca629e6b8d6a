"""The train state and the model that it is of: initialised under jit, where the layout stores it."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llm_jax.core.config_tree import flat
from llm_jax.core.errors import UserError, nearest
from llm_jax.layout.layout import MeshPlacement
from llm_jax.model.adapter_start import first_arrays
from llm_jax.model.adapters import NO_ADAPTER, AdapterConfig, adapted_weights, merged, weight_name
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Table
from llm_jax.model.parametrization import multipliers
from llm_jax.model.router import bias_change
from llm_jax.model.transformer import Transformer
from llm_jax.model.weight_values import Untrained
from llm_jax.model.weights import ShardedParam, Weight, stored_dims
from llm_jax.train.config import EVERYTHING
from llm_jax.train.optimizer import OptimizerConfig, ParameterInfo, make_optimizer
from llm_jax.train.program_options import program_options


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that changes from step to step, and all that a checkpoint holds.

    Parameters that aren't trained are not in it.
    """

    step: jax.Array
    """Steps done, int32 []."""
    parameters: Any
    """The trainable weights: nested dicts of arrays in the parameter dtype."""
    moments: Any
    """The optimizer's state, float32 for any parameter dtype."""
    average: Any
    """Exponential moving average of the parameters, in float32 (in bfloat16 it would stand
    still), or None.
    """
    bad_steps: jax.Array
    """Updates skipped so far because loss or gradient was not finite, int32 []."""
    bad_in_a_row: jax.Array
    """How many of those just now, one after the other, int32 []."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """What a step reads and never changes: no gradients, master parameters, moments or checkpoints of it
    exist.
    """

    rest: Any = dataclasses.field(default_factory=dict)
    """The policy's parameters that aren't trained: nested dicts of arrays, stored as the layout says; {}
    where all are trained.
    """
    models: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The parameters of each model beside the policy, by role (`Objective.frozen`), but for those that it
    shares with `rest`."""


class TrainModel:
    """The model's graph, the placement of its weights and its optimizer: what the jitted functions are made
    of.

    Trees of parameters are nested dicts. `abstract`, `dims` and `info` are of the whole model; `trainable`
    selects the part of such a tree that is trained. With an adapter the arrays that a weight is made of are
    leaves beside each other (`model.adapters`), under keys such as "query" and "query.lora_A".
    """

    numbers: Mapping[str, jax.Array] = MappingProxyType({})
    """Values of the optimizer's configuration, by key, that are arrays of the traced program and not its
    constants.
    """

    def __init__(
        self,
        model: ModelConfig,
        optimizer: OptimizerConfig,
        place: MeshPlacement,
        ema_decay: float = 0.0,
        trainable: Sequence[str] = EVERYTHING,
        adapter: AdapterConfig = NO_ADAPTER,
    ):
        """trainable: patterns (`*` for anything) of the dotted names of the parameters that are trained; with
        an adapter they are trained beside it, and everything stands for nothing (but a new head for rewards).

        Raises UserError for a pattern that no parameter has, and for an adapter that the model can't have.
        """
        self.config, self.place, self.ema_decay = model, place, ema_decay
        abstract = nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0), place=place))
        self.graph, weights = nnx.split(abstract)
        self.structure = jax.tree.structure(weights)
        self.optimizer = optimizer
        self.patterns = tuple(trainable)
        if adapter.rank and self.patterns == EVERYTHING:  # a head for rewards is new, so it is trained too
            self.patterns = ("head",) if model.outputs == "reward" else ()
        self.weights: dict[str, Weight] = flat(pure(weights, leaf=lambda w: w))
        """The model's weights by dotted name, in the order of its graph; abstract, and without an adapter."""
        all_weights = frozenset(self.weights)
        patterned = (
            all_weights if self.patterns == EVERYTHING else trained_names(sorted(all_weights), self.patterns)
        )
        self.adapted = adapted_weights(adapter, model, self.weights, patterned)
        arrays = self.adapted.arrays
        of = lambda f: nested({name: f(w) for name, w in arrays.items()})  # noqa: E731
        self.abstract = of(lambda w: w.get_value())
        self.dims = of(lambda w: Leaf(stored_dims(w)))
        self.info = of(lambda w: ParameterInfo(w.dims, w.stacked, multipliers(model, w.dims, w.stacked)))
        self.names = frozenset(arrays)
        """The dotted names of all parameters."""
        self.trained = patterned | self.adapted.trained
        """The names of those that are trained."""

    def trainable(self, tree: Any) -> Any:
        """The part of a tree shaped like the whole model that is trained."""
        return pick(tree, self.trained)

    def rest(self, tree: Any) -> Any:
        """The part of a tree shaped like the whole model that is not trained."""
        return pick(tree, self.names - self.trained)

    def whole(self, parameters: Any, rest: Any) -> Any:
        """A tree shaped like the whole model, from its trained part and the rest."""
        return join(parameters, rest) if rest else parameters

    def model(self, parameters: Any, masters: Any = None, rest: Any = None) -> Transformer:
        """The model with these parameters.

        With `masters` it is these that get the gradients (see `master_params`).

        rest: the parameters that `parameters` lacks, as in `Frozen`.
        """
        values = parameters
        if masters is not None:
            values = jax.tree.map(
                lambda master, stored: (
                    master if jax.typeof(master) == jax.typeof(stored) else ShardedParam(master, stored)
                ),
                masters,
                parameters,
            )
        frozen = flat(rest or {})
        arrays = flat(values) | frozen
        leaves = [
            Untrained(arrays[name])
            if name in frozen and name not in self.adapted.targets
            else self.adapted.value(name, arrays)
            for name in self.weights
        ]
        return nnx.merge(self.graph, jax.tree.unflatten(self.structure, leaves))

    def master_params(self, parameters: Any) -> Any:
        """The trained parameters in float32 where their gradients, moments and updates are: the table
        `optimizer`.
        """
        return in_float32(self.reshard_to(parameters, "optimizer"))

    def shardings(self, table: Table) -> Any:
        """Where each parameter of the whole model lives according to one of the layout's tables."""
        return jax.tree.map(
            lambda leaf, w: self.place.sharding(leaf.value, table, w.shape), self.dims, self.abstract
        )

    def reshard_to(self, parameters: Any, table: Table) -> Any:
        """Arrays shaped like the parameters, or like those that are trained, moved to where a table says."""
        shardings = self.shardings(table)
        if flat(parameters).keys() != self.names:
            shardings = self.trainable(shardings)
        return jax.tree.map(jax.sharding.reshard, parameters, shardings)

    def update(self, grads: Any, moments: Any, masters: Any) -> tuple[Any, Any]:
        """(updates for a learning rate of one, new moments), made where the moments are.

        How a matrix algorithm (Muon) divides over devices is left to XLA.
        """

        def update(numbers: dict[str, Any], *arrays: Any) -> tuple[Any, Any]:
            optimizer = dataclasses.replace(self.optimizer, **numbers)
            return make_optimizer(optimizer, self.trainable(self.info)).update(*arrays)

        if set(self.place.manual_axes) == set(self.place.mesh.axis_names):  # every device is on its own
            return update(dict(self.numbers), grads, moments, masters)
        at_home = jax.tree.map(lambda s: s.spec, self.trainable(self.shardings("optimizer")))
        moment_specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, moments)
        anywhere = jax.sharding.auto_axes(
            update, axes=self.place.mesh.axis_names, out_sharding=(at_home, moment_specs)
        )
        return anywhere(dict(self.numbers), grads, moments, masters)

    def with_numbers(self, numbers: Mapping[str, jax.Array]) -> TrainModel:
        """A copy with values of the optimizer's configuration that the caller traces."""
        copied = copy.copy(self)
        copied.numbers = numbers
        return copied

    def balanced(self, updates: Any, load_LE: jax.Array) -> Any:
        """The updates, with those of the routers' biases replaced as the experts' loads require: the
        optimizer does not train them.
        """
        moe = self.config.moe
        if not (moe.experts and moe.bias) or "blocks.mlp.bias" not in self.trained:
            return updates
        blocks = updates["blocks"]
        return {**updates, "blocks": {**blocks, "mlp": {**blocks["mlp"], "bias": bias_change(moe, load_LE)}}}

    def init(self, seed: jax.Array) -> TrainState:
        """A new state. To be jitted: every device makes only its own part of the weights."""
        return self.init_with(self.trainable(self.init_parameters(seed)))

    def init_parameters(self, seed: jax.Array) -> Any:
        """The whole model's initial parameters, where the layout stores them. To be jitted."""
        _, weights = nnx.split(
            Transformer(self.config, rngs=nnx.Rngs(params=jax.random.key(seed)), place=self.place)
        )
        return self.with_adapter(pure(weights), seed)

    def with_adapter(self, weights: Any, seed: jax.Array) -> Any:
        """All parameters, where the layout stores them, of whole weights: base and a new adapter, if there is
        one. To be jitted.

        weights: shaped like a model without adapter. seed: uint32 [].
        """
        if not self.adapted.changes:
            return self.reshard_to(weights, "stored")
        dims = {name: stored_dims(w) for name, w in self.weights.items()}
        found = first_arrays(self.adapted, flat(weights), dims, seed, self.place)
        return self.reshard_to(nested(found), "stored")

    def merged(self, parameters: Any) -> Any:
        """The whole weights that all parameters stand for, float32, as a model without adapter has them. To
        be jitted."""
        dims = {name: stored_dims(w) for name, w in self.weights.items()}
        return nested(merged(self.adapted, flat(parameters), dims, self.place))

    @functools.cached_property
    def plain(self) -> TrainModel:
        """The model without adapter, all of its weights whole and trained."""
        return self if not self.adapted.changes else TrainModel(self.config, self.optimizer, self.place)

    def placed(self, place: MeshPlacement, config: ModelConfig | None = None) -> TrainModel:
        """The model, with its adapter, placed otherwise. config: one that it computes with instead."""
        return TrainModel(
            config or self.config, self.optimizer, place, self.ema_decay, self.patterns, self.adapted.config
        )

    def init_with(self, parameters: Any) -> TrainState:
        """A new state with these trainable parameters. To be jitted."""
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            step=zero,
            parameters=parameters,
            moments=make_optimizer(self.optimizer, self.trainable(self.info)).init(
                self.master_params(parameters)
            ),
            average=in_float32(jax.tree.map(jnp.copy, parameters)) if self.ema_decay else None,
            bad_steps=zero,
            bad_in_a_row=zero,
        )

    def new_state(self, seed: int) -> TrainState:
        """A new state on the devices of the mesh."""
        with jax.set_mesh(self.place.mesh):
            return self.jitted_init(jnp.uint32(seed))

    def new_parameters(self, seed: int) -> Any:
        """The whole model's initial parameters on the devices of the mesh."""
        with jax.set_mesh(self.place.mesh):
            return self.jit(self.init_parameters)(jnp.uint32(seed))

    def state_with(self, parameters: Any) -> TrainState:
        """A new state with trainable parameters that are on the devices of the mesh. They are donated."""
        with jax.set_mesh(self.place.mesh):
            return self.jit(self.init_with, donate_argnums=0)(parameters)

    @functools.cached_property
    def jitted_init(self) -> Any:
        """`init`, compiled once for all seeds."""
        return self.jit(self.init)

    def jit(self, function: Callable[..., Any], **more: Any) -> Any:
        """`jax.jit(function, **more)` with the compiler options of programs on the model's devices, some of
        which work around XLA bugs: whatever computes with a model's weights is compiled by this.
        """
        return jax.jit(function, compiler_options=program_options(self) or None, **more)

    def abstract_state(self) -> TrainState:
        """The state's shapes, dtypes and shardings, without arrays: what a checkpoint is restored into."""
        with jax.set_mesh(self.place.mesh):
            shapes = jax.eval_shape(
                self.init, jax.ShapeDtypeStruct((), jnp.uint32)
            )  # the devices may be absent
        return jax.tree.map(self.on_mesh, shapes)

    def abstract_parameters(self) -> Any:
        """The shapes, dtypes and shardings of the whole model's parameters, as the layout stores them."""
        return jax.tree.map(
            lambda w, s: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=s),
            self.abstract,
            self.shardings("stored"),
        )

    def on_mesh(self, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """A traced shape with its sharding on the concrete mesh; counters, which are on none, are on every
        device.
        """
        spec = x.sharding.spec if x.sharding else jax.sharding.PartitionSpec()
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.NamedSharding(self.place.mesh, spec)
        )

    def parameter_count(self) -> int:
        """Numbers in all weights, trained or not, and in the adapter."""
        own = self.adapted.trained
        of_adapter = sum(math.prod(self.adapted.arrays[name].get_value().shape) for name in own)
        return of_adapter + sum(math.prod(w.get_value().shape) for w in self.weights.values())

    def trained_count(self) -> int:
        """Numbers that are trained."""
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self.trainable(self.abstract)))


def trained_names(names: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
    """The names that match any of the patterns. Raises UserError for a pattern that matches none."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                f"train.trainable={pattern}: no parameter has this name; {nearest(pattern, names)}"
            )
    return frozenset(
        name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )


def pick(tree: Any, names: Collection[str], prefix: str = "") -> Any:
    """The part of a nested dict whose leaves have these dotted names; empty dicts are left out."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            if inner := pick(value, names, f"{prefix}{key}."):
                found[key] = inner
        elif prefix + key in names:
            found[key] = value
    return found


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict of what has dotted names, keys sorted as JAX sorts them. The arrays that a weight is made
    of are beside each other: their suffix is a part of their key."""
    tree: dict[str, Any] = {}
    for name in sorted(arrays):
        *folders, key = weight_name(name).split(".")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[key + name[len(weight_name(name)) :]] = arrays[name]
    return in_order(tree)


def in_order(tree: Any) -> Any:
    """A nested dict with its keys sorted."""
    return {key: in_order(tree[key]) for key in sorted(tree)} if isinstance(tree, dict) else tree


def join(one: Any, other: Any) -> Any:
    """Two nested dicts without a common leaf as one, keys sorted as JAX sorts them."""
    both = {**one, **other}
    return {
        key: join(one[key], other[key]) if key in one and key in other else both[key] for key in sorted(both)
    }


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Keeps a tuple from being taken for a branch of a tree."""

    value: Any


def in_float32(tree: Any) -> Any:
    """The arrays of a tree in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def pure(weights: Any, leaf: Callable[[nnx.Variable], Any] = lambda w: w.get_value()) -> dict:
    """An nnx state as nested dicts of its variables' values, or of something else of each variable."""
    if isinstance(weights, nnx.Variable):
        return leaf(weights)
    if hasattr(weights, "items"):
        return {key: pure(value, leaf) for key, value in sorted(weights.items())}
    return weights
