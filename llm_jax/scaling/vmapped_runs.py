"""Trains several runs of one shape in one program: `jax.vmap` of the train step over everything that may
differ between them.

What may differ (`MAY_VARY`) becomes arrays with one entry a run: weights, moments and batches, the whole
learning-rate schedule as a table of rates, and numbers of the optimizer. Each run starts from the weights
that it would have when trained by itself, bit for bit, sees the same batches, and leaves an ordinary run
folder: a run that was vmapped can resume by itself, and the reverse. A run that diverges is recorded as
diverged and the others continue. On a mesh of several devices each device holds some of the runs, whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.core.config_tree import flat
from llm_jax.core.console import Console
from llm_jax.core.errors import Stopped, UserError
from llm_jax.data import batch_sha
from llm_jax.experiment import Experiment
from llm_jax.layout.gpu_options import Options
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.objective.protocol import Examples, Objective
from llm_jax.processes.group import Group
from llm_jax.run import run
from llm_jax.run.prepare import (
    NO_SERVICES,
    RunPlan,
    RunServices,
    check_folder,
    is_finished,
    make_plan,
    place_of,
    prepare_corpus,
    with_vocabulary_of,
)
from llm_jax.train.config import TrainConfig
from llm_jax.train.evaluation import Evaluator, HeldOut
from llm_jax.train.loader import DeviceBatch, Loader, checked
from llm_jax.train.optimizer import make_schedule
from llm_jax.train.program_options import program_options
from llm_jax.train.run_state import RunState
from llm_jax.train.state import Frozen, TrainModel, TrainState
from llm_jax.train.step import make_evaluation, make_step

IN_THE_SCHEDULE = (
    "optimizer.learning_rate", "optimizer.schedule", "optimizer.warmup_steps", "optimizer.decay_fraction",
    "optimizer.final_fraction",
)  # fmt: skip
IN_THE_OPTIMIZER = ("learning_rate", "weight_decay")
"""Settings that become traced numbers: an optimizer may multiply with them (Muon: with the ratio of its two
learning rates).
"""
MAY_VARY = ("train.seed", "model.init_std", "optimizer.weight_decay", *IN_THE_SCHEDULE)
"""The keys in which runs of one program may differ."""


def group_by_shape(experiments: Sequence[Experiment], limit: int) -> list[list[Experiment]]:
    """Resolved experiments in groups that one program can train, at most `limit` each, in the order of their
    first members.

    Experiments of a group differ only in `MAY_VARY`, their name and their run folder.
    """
    by_shape: dict[str, list[list[Experiment]]] = {}
    for experiment in experiments:
        groups = by_shape.setdefault(shape_key(experiment), [[]])
        if len(groups[-1]) == limit:
            groups.append([])
        groups[-1].append(experiment)
    order = {id(experiment): i for i, experiment in enumerate(experiments)}
    return sorted(
        (group for groups in by_shape.values() for group in groups), key=lambda group: order[id(group[0])]
    )


def shape_key(experiment: Experiment) -> str:
    """Everything that runs of one program must have in common, as JSON text."""
    tree = flat(dataclasses.asdict(experiment))
    return json.dumps(
        {key: value for key, value in tree.items() if key not in (*MAY_VARY, "name", "run_dir")},
        sort_keys=True,
    )


def run_vmapped(
    experiments: Sequence[Experiment],
    console: Console,
    group: Group,
    begun: float,
    services: RunServices = NO_SERVICES,
) -> list[int]:
    """Trains or resumes the runs of one group; returns an exit code for each, as `run.prepare_and_train`
    does.

    Finished runs are left untouched. The others resume from the newest checkpoint that they have in common;
    where there is none, all of them start again. Raises UserError for a configuration that can't be vmapped.
    """
    assert len(group_by_shape(experiments, len(experiments))) == 1, "experiments of one group"
    summaries = [check_folder(experiment, group) for experiment in experiments]
    codes = [
        0 if is_finished(e, summary) else None for e, summary in zip(experiments, summaries, strict=True)
    ]
    # A run that diverged before resumes from its last good checkpoint, an older step than the others' newest:
    # it has a program apart.
    for diverged in (False, True):
        pending = [
            i
            for i, code in enumerate(codes)
            if code is None and (summaries[i].get("state") == "diverged") == diverged
        ]
        if len(pending) == 1:
            codes[pending[0]] = run.prepare_and_train(
                experiments[pending[0]], console, group, begun, services
            )
        elif pending:
            if names := experiments[0].evaluate.tasks:
                raise UserError(
                    f"evaluate.tasks={names}: has no effect on runs in one program. Leave out "
                    "grid.executor=vmap, or evaluate the runs afterwards"
                )
            place = placement_for(experiments[0], len(pending))
            chosen, last = [experiments[i] for i in pending], [summaries[i] for i in pending]
            for i, code in zip(
                pending, prepare_and_train(chosen, last, place, console, group, begun, services), strict=True
            ):
                codes[i] = code
        if group.received is not None:
            break
    return [Stopped(group.received or 0).code if code is None else code for code in codes]


def placement_for(experiment: Experiment, count: int) -> MeshPlacement:
    """The largest number of the mesh's devices that divides `count` runs evenly, as a placement of whole
    runs.

    Raises UserError for a layout or setting that can't be vmapped.
    """
    whole, layout = place_of(experiment), experiment.layout
    if any(axes for table in layout.tables().values() for axes in table.values()):
        raise UserError(
            f"layout.name={layout.name}: splits arrays over devices, but grid.executor=vmap keeps each "
            "run whole on one device. "
            "Use layout=single, with mesh.data=-1 to spread the runs over all devices."
        )
    if experiment.model.attention == "cudnn":
        raise UserError(
            "model.attention=cudnn: can't be vmapped over runs. Use model.attention=xla or "
            "model.attention=blocked."
        )
    if experiment.train.rollback.spike:
        raise UserError(
            f"train.rollback.spike={experiment.train.rollback.spike:g}: grid.executor=vmap can't roll "
            "back one run without the others. "
            "Use 0, or grid.executor=one_by_one."
        )
    if experiment.train.start_from:
        raise UserError(
            f"train.start_from={experiment.train.start_from}: grid.executor=vmap starts runs from random "
            "weights. Use grid.executor=one_by_one."
        )
    if type(experiment.objective).source is not Objective.source:
        raise UserError(
            f"objective.name={experiment.objective.name}: grid.executor=vmap can't train "
            "with its own source of batches. Use grid.executor=one_by_one."
        )
    objective = experiment.objective
    if objective.frozen() or objective.precomputed() or not experiment.trains_everything:
        raise UserError(
            f"objective.name={experiment.objective.name}: grid.executor=vmap can't train runs with frozen "
            "models or frozen parameters. "
            "Use grid.executor=one_by_one."
        )
    axis, *others = layout.mesh
    devices = max(n for n in range(1, whole.mesh.size + 1) if count % n == 0)
    return MeshPlacement(layout, make_mesh(layout, {axis: devices, **dict.fromkeys(others, 1)}))


def prepare_and_train(
    experiments: list[Experiment],
    lasts: list[dict[str, Any]],
    place: MeshPlacement,
    console: Console,
    group: Group,
    begun: float,
    services: RunServices,
) -> list[int]:
    """Prepares the corpus in every run's order and the run folders, and trains in them. lasts: the summaries
    of their last starts.
    """
    first = experiments[0]
    corpus = prepare_corpus(first, services, group, console.log)
    by_seed = {
        e.train.seed: corpus if e.train.seed == first.train.seed else corpus.with_seed(e.train.seed)
        for e in experiments
    }
    plans = [
        make_plan(with_vocabulary_of(e, corpus), place, by_seed[e.train.seed], f"{Path(e.run_dir).name}: ")
        for e in experiments
    ]
    with contextlib.ExitStack() as folders:
        for plan, last in zip(plans, lasts, strict=True):
            folders.enter_context(run.open_run_folder(plan.experiment, plan.corpus, last, group, console))
        count = len(plans)
        note = (
            f"vmap        {count} runs in one program, the first as above; they differ in "
            f"{'; '.join(differing_keys(experiments))}"
        )
        return run.train(plans, console, group, begun, services, vmapped, note, {"vmapped_runs": count})


def vmapped(plans: Sequence[RunPlan], runs: Sequence[RunState], frozen: Frozen, group: Group) -> run.Stepper:
    """Trains several runs in lockstep: `jax.vmap` of the step, each device with its share of the runs."""
    first, place = plans[0], plans[0].place
    e, objective = first.experiment, first.experiment.objective
    # On its own device a run is placed as if it were the only one: all mesh axes are used up.
    alone = dataclasses.replace(place, manual_axes=place.mesh.axis_names)
    own_model = TrainModel(first.model.config, e.optimizer, alone, e.train.ema_decay)
    evaluate = vmap_over_devices(place, make_evaluation(own_model, objective), in_axes=(0, None, None, None))
    examples = [running.examples for running in runs]
    held_out = HeldOut(
        first.model, objective, examples[0], first.corpus.tokenizer, e.train.batch_size, evaluate=evaluate
    )
    return run.Stepper(
        step=jit_vmapped_step(
            own_model, objective, [plan.experiment for plan in plans], program_options(first.model)
        ),
        source=VmappedLoader(examples, objective, place, e.train),
        evaluate=Evaluator(held_out, e.train, e.evaluate, group),
        join=lambda states: stack_states(states, place),
        parts=make_unstack(len(plans)),
    )


def differing_keys(experiments: list[Experiment]) -> list[str]:
    """The keys in which runs differ, each as text with the runs' values."""
    trees = [flat(dataclasses.asdict(e)) for e in experiments]
    columns = {key: [tree[key] for tree in trees] for key in MAY_VARY}
    return [
        f"{key}: {', '.join(map(str, values))}" for key, values in columns.items() if len(set(values)) > 1
    ]


def vmap_over_devices(place: MeshPlacement, f: Callable, in_axes: tuple[int | None, ...]) -> Callable:
    """`f` of one run, mapped over several: each device computes its share of the runs. in_axes: as in
    `jax.vmap`, 0 or None.
    """
    runs = runs_spec(place)
    in_specs = tuple(PartitionSpec() if axis is None else runs for axis in in_axes)
    return jax.shard_map(
        jax.vmap(f, in_axes), mesh=place.mesh, in_specs=in_specs, out_specs=runs, check_vma=False
    )


def runs_spec(place: MeshPlacement) -> PartitionSpec:
    """The partition spec of arrays with a leading dim of runs, which is split over all devices."""
    return PartitionSpec(place.mesh.axis_names)


def jit_vmapped_step(
    program: TrainModel, objective: Objective, experiments: Sequence[Experiment], options: Options
) -> Callable[[TrainState, Any, Frozen], tuple[TrainState, dict[str, jax.Array]]]:
    """step(state, batch, frozen) -> (state, metrics) of all runs, jitted; every array has a leading dim of
    runs. The state is donated.

    program: of one run on its own device. options: compiler options. The step raises UserError for an
    optimizer that branches in Python on a setting in which the runs differ.
    """
    config, steps, clip_norm, place = (
        experiments[0].optimizer,
        experiments[0].train.steps,
        experiments[0].optimizer.clip_norm,
        program.place,
    )
    rates_RS = np.stack([jax.vmap(make_schedule(e.optimizer, steps))(jnp.arange(steps)) for e in experiments])
    values = {
        key: np.array([getattr(e.optimizer, key) for e in experiments], np.float32)
        for key in IN_THE_OPTIMIZER
    }
    # A value that all runs share stays a constant of the program.
    numbers = {key: array for key, array in values.items() if len(set(array.tolist())) > 1}
    fixed = jax.device_put((numbers, rates_RS), NamedSharding(place.mesh, runs_spec(place)))

    def one_run(
        fixed: tuple[dict[str, jax.Array], jax.Array], state: TrainState, batch: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        numbers, rates_S = fixed
        return make_step(program.with_numbers(numbers), objective, lambda step: rates_S[step], clip_norm)(
            state, batch
        )

    jitted = jax.jit(
        vmap_over_devices(place, one_run, (0, 0, 0)), donate_argnums=1, compiler_options=options or None
    )

    def step(state: TrainState, batch: Any, frozen: Frozen) -> tuple[TrainState, dict[str, jax.Array]]:
        try:
            return jitted(fixed, state, batch)
        except jax.errors.TracerBoolConversionError as error:
            differ = ", ".join(f"optimizer.{key}" for key in numbers)
            raise UserError(
                f"optimizer.name={config.name}: branches on {differ}, so grid.executor=vmap can't train "
                "runs that differ in it. "
                "Use grid.executor=one_by_one."
            ) from error

    return step


def stack_states(states: list[TrainState], place: MeshPlacement) -> TrainState:
    """The states of several runs as one state whose arrays have a leading dim of runs, split over all
    devices.
    """

    def stack(states: list[TrainState]) -> TrainState:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    return jax.jit(stack, out_shardings=NamedSharding(place.mesh, runs_spec(place)))(states)


def make_unstack(count: int) -> Callable[[Any], list[Any]]:
    """A function that splits a tree with a leading dim of runs into one tree a run: host arrays by indexing,
    JAX arrays in one jitted program.
    """

    def index(tree: Any) -> list[Any]:
        return [jax.tree.map(operator.itemgetter(i), tree) for i in range(count)]

    @jax.jit
    def index_on_devices(tree: Any) -> list[Any]:
        return index(jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec()), tree))

    return lambda tree: (
        index_on_devices(tree)
        if any(isinstance(x, jax.Array) for x in jax.tree.leaves(tree))
        else index(tree)
    )


class VmappedLoader(Loader):
    """The batches of several runs, each as the run would have it alone: arrays [R, A, B / A, ...]."""

    def __init__(
        self, examples: Sequence[Examples], objective: Objective, place: MeshPlacement, train: TrainConfig
    ):
        super().__init__(examples[0], objective, place, train)
        self.of_runs = examples

    def make(self, number: int) -> DeviceBatch:
        """Batch `number` of every run; built once for runs that share a corpus."""
        different = {id(examples): examples for examples in self.of_runs}
        batches = {key: checked(examples.batch(number), self.specs) for key, examples in different.items()}
        shas = {key: batch_sha(batch) if self.sha else None for key, batch in batches.items()}
        A, keys = self.train.microbatches, [id(examples) for examples in self.of_runs]
        rows = {name: np.stack([split_rows(batches[key][name], A) for key in keys]) for name in self.specs}
        sharding = NamedSharding(self.place.mesh, runs_spec(self.place))
        return DeviceBatch(
            {name: jax.device_put(values, sharding) for name, values in rows.items()},
            tuple(shas[key] for key in keys),
        )


def split_rows(values: np.ndarray, microbatches: int) -> np.ndarray:
    """An array [B, ...] as [A, B / A, ...]."""
    return values.reshape(microbatches, -1, *values.shape[1:])
