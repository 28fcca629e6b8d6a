"""Several runs of the same shape at once, in one program: `jax.vmap` of the train step over all that may differ between them.

What may differ (`MAY_VARY`) becomes arrays of the program, one entry a run: weights, moments and batches, the whole learning-rate
schedule as a table of rates, and numbers of the optimizer. Each run begins with the weights that it would have alone, bit for bit, sees
the same batches, and leaves an ordinary run folder: a run can go on alone that began together, and the other way round. One that
diverges is recorded as diverged, and the others go on. Where the mesh has several devices, each has some of the runs, whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax import data
from llm_jax.core.config_tree import flat
from llm_jax.core.console import Console
from llm_jax.core.errors import EXIT_DIVERGED, Stopped, UserError
from llm_jax.data import batch_sha
from llm_jax.experiment import Experiment
from llm_jax.layout.gpu_options import Options
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.objective.next_token import Objective, make_objective
from llm_jax.processes.group import Group
from llm_jax.run import run
from llm_jax.run.header import header
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.compile import program_options
from llm_jax.train.evaluation import Evaluator
from llm_jax.train.loader import Fed, Feed
from llm_jax.train.loop import Diverged, Loop
from llm_jax.train.optimizer import make_schedule
from llm_jax.train.peak_flops import device_peak
from llm_jax.train.rollback import Rollbacks
from llm_jax.train.state import TrainModel, TrainState
from llm_jax.train.step import make_evaluation, make_step

IN_THE_SCHEDULE = (
    "optimizer.learning_rate", "optimizer.schedule", "optimizer.warmup_steps", "optimizer.decay_fraction", "optimizer.final_fraction",
)  # fmt: skip
IN_THE_OPTIMIZER = ("learning_rate", "weight_decay")
"""Numbers that an optimizer may multiply with (Muon, with the ratio of its two learning rates)."""
MAY_VARY = ("train.seed", "model.init_std", "optimizer.weight_decay", *IN_THE_SCHEDULE)
"""The keys in which runs that are trained together may differ."""


def groups(experiments: Sequence[Experiment], at_once: int) -> list[list[Experiment]]:
    """The experiments (resolved) in groups that can be trained together, at most `at_once` each, in the order of their first members.

    Those of a group differ in nothing but `MAY_VARY`, their name and their run folder.
    """
    found: dict[str, list[list[Experiment]]] = {}
    for experiment in experiments:
        alike = found.setdefault(shape(experiment), [[]])
        if len(alike[-1]) == at_once:
            alike.append([])
        alike[-1].append(experiment)
    order = {id(experiment): i for i, experiment in enumerate(experiments)}
    return sorted((group for alike in found.values() for group in alike), key=lambda group: order[id(group[0])])


def shape(experiment: Experiment) -> str:
    """All of a configuration that runs must have in common to be trained together."""
    tree = flat(dataclasses.asdict(experiment))
    return json.dumps({key: value for key, value in tree.items() if key not in (*MAY_VARY, "name", "run_dir")}, sort_keys=True)


def run_together(experiments: Sequence[Experiment], console: Console, group: Group, begun: float, shared: run.Shared = run.ALONE) -> list[int]:
    """Trains the runs of a group, or goes on with them; returns an exit code for each, as `run.prepare_and_train` does.

    Those that are finished are left as they are. The others go on from the newest checkpoint that they have in common; where there
    is none, all of them start again. Raises UserError for what can't be trained together.
    """
    assert len(groups(experiments, len(experiments))) == 1, "experiments of one group"
    lasts = [run.check_folder(experiment, group) for experiment in experiments]
    codes = [0 if run.is_finished(e, last) else None for e, last in zip(experiments, lasts, strict=True)]
    # What diverged before goes on from its last good checkpoint, which the others left behind.
    for diverged in (False, True):
        at = [i for i, code in enumerate(codes) if code is None and (lasts[i].get("state") == "diverged") == diverged]
        if len(at) == 1:
            codes[at[0]] = run.prepare_and_train(experiments[at[0]], console, group, begun, shared)
        elif at:
            place = place_for(experiments[0], len(at))
            ended = prepare_and_train([experiments[i] for i in at], [lasts[i] for i in at], place, console, group, begun, shared)
            for i, code in zip(at, ended, strict=True):
                codes[i] = code
        if group.received is not None:
            break
    return [Stopped(group.received or 0).code if code is None else code for code in codes]


def place_for(experiment: Experiment, count: int) -> MeshPlacement:
    """The devices for so many runs: the most of the mesh's among which they can be dealt out evenly.

    Raises UserError where runs can't be trained together.
    """
    whole, layout = run.place_of(experiment), experiment.layout
    if any(axes for table in layout.tables().values() for axes in table.values()):
        raise UserError(
            f"layout.name={layout.name}: splits arrays over devices, and runs that are trained together are each whole on one; use layout=single, "
            "with mesh.data=-1 to spread the runs over all devices"
        )
    if experiment.model.attention == "cudnn":
        raise UserError("model.attention=cudnn: has no form for several runs at once; use model.attention=xla or model.attention=blocked")
    if experiment.train.rollback.spike:
        raise UserError(
            f"train.rollback.spike={experiment.train.rollback.spike:g}: runs that are trained together can't be rolled back one without the others; "
            "use 0, or train them one by one"
        )
    if experiment.train.start_from:
        raise UserError(f"train.start_from={experiment.train.start_from}: runs that are trained together begin at random; train them one by one")
    axis, *others = layout.mesh
    most = max(n for n in range(1, whole.mesh.size + 1) if count % n == 0)
    return MeshPlacement(layout, make_mesh(layout, {axis: most, **dict.fromkeys(others, 1)}))


def prepare_and_train(
    experiments: list[Experiment],
    lasts: list[dict[str, Any]],
    place: MeshPlacement,
    console: Console,
    group: Group,
    begun: float,
    shared: run.Shared,
) -> list[int]:
    """The corpus in every run's order, the run folders, and the runs in them. `lasts`: the summaries of their last starts."""
    first = experiments[0]
    corpus = run.prepare_corpus(first, shared, group, console.log)
    by_seed = {e.train.seed: corpus if e.train.seed == first.train.seed else corpus.with_seed(e.train.seed) for e in experiments}
    vocabulary = corpus.tokenizer.vocab_size
    experiments = [dataclasses.replace(e, model=e.model.resolved(vocabulary)) for e in experiments]
    corpora = [by_seed[e.train.seed] for e in experiments]
    with contextlib.ExitStack() as folders:
        for experiment, own, last in zip(experiments, corpora, lasts, strict=True):
            folders.enter_context(run.opened(experiment, own, last, group, console))
        return train(experiments, place, corpora, console, group, begun, shared)


def train(
    experiments: list[Experiment],
    place: MeshPlacement,
    corpora: list[data.Corpus],
    console: Console,
    group: Group,
    begun: float,
    shared: run.Shared,
) -> list[int]:
    """The runs themselves, in their folders, from their newest common checkpoint or the start to their last words."""
    e, count = experiments[0], len(experiments)
    # A program for each model: what differs is the scale of its initial weights, a constant of how they are made.
    of_models = {repr(x.model): TrainModel(x.model, e.optimizer, place, e.train.ema_decay) for x in experiments}
    programs = [of_models[repr(x.model)] for x in experiments]
    program, parts = programs[0], parts_of(count)
    # On its own device a run is as if there were no other: all mesh axes are used up.
    own_program = TrainModel(e.model, e.optimizer, dataclasses.replace(place, manual_axes=place.mesh.axis_names), e.train.ema_decay)
    with contextlib.ExitStack() as life:
        checkpoints = [Checkpoints(Path(x.run_dir), x.checkpoint, group) for x in experiments]
        for kept in checkpoints:
            life.callback(kept.close)
        states, infos = start_or_resume(programs, checkpoints, experiments, corpora, console)
        peak = (shared.peak or device_peak)(place.mesh, e.model.compute_dtype)
        console.log(header(e, program, corpora[0], peak))
        console.log(f"together    {count} runs in one program, the first as above; they differ in {'; '.join(varied(experiments))}")
        peak_of_all = peak and peak * place.mesh.size
        runs = [
            run.make_running(life, x, kept, Rollbacks(Path(x.run_dir), group), corpus, info, begun, peak_of_all, label=f"{Path(x.run_dir).name}: ")
            for x, kept, corpus, info in zip(experiments, checkpoints, corpora, infos, strict=True)
        ]
        for running in runs:
            if running.goodput.notice:
                console.log(running.label + running.goodput.notice)
        feed = FeedTogether(corpora, place, batch_size=e.train.batch_size, microbatches=e.train.microbatches, sha=e.train.batch_sha)
        life.callback(feed.close)
        evaluate = by_device(place, make_evaluation(own_program), in_axes=(0, None, None))
        loop = Loop(
            group=group,
            step=jit_steps(own_program, make_objective(e.objective), experiments, program_options(program)),
            feed=feed,
            evaluate=Evaluator(program, corpora[0], e.train, e.evaluate, group, evaluate),
            runs=runs,
            console=console,
            train=e.train,
            evaluation=e.evaluate,
            checkpointing=e.checkpoint,
            parts=parts,
        )
        stopped_by = 0
        try:
            with jax.set_mesh(place.mesh):
                state = loop.run(stacked(states, place), infos[0]["step"], evaluation_due=any(info.get("evaluation_due") for info in infos))
                loop.spend("sample")
                if e.sample.tokens:
                    for x, own, corpus, running in zip(experiments, parts(state), corpora, runs, strict=True):
                        if not running.diverged:
                            run.show_samples(program, own, corpus, x, console, group)
        except Stopped as stopped:
            if not group.held:  # not a step was done
                raise
            console.log(f"{stopped} at step {loop.live()[0].latest['step']}; checkpoints saved; the same command goes on from here")
            stopped_by = stopped.code
        except Diverged:
            console.log(f"all {count} runs diverged")
        run.settle(runs, group)
        codes = [EXIT_DIVERGED if running.diverged else stopped_by for running in runs]
        for x, running, code in zip(experiments, runs, codes, strict=True):
            run.last_word(x, program, running, peak, code, console, {"together": count})
    return codes


def varied(experiments: list[Experiment]) -> list[str]:
    """What runs differ in, each key with its values."""
    trees = [flat(dataclasses.asdict(e)) for e in experiments]
    values = {key: [tree[key] for tree in trees] for key in MAY_VARY}
    return [f"{key}: {', '.join(map(str, of_key))}" for key, of_key in values.items() if len(set(of_key)) > 1]


def start_or_resume(
    programs: list[TrainModel], checkpoints: list[Checkpoints], experiments: list[Experiment], corpora: list[data.Corpus], console: Console
) -> tuple[list[TrainState], list[Mapping[str, Any]]]:
    """Each run's state and info at the newest step of which all have a readable checkpoint, or at the start."""
    while common := set.intersection(*(set(kept.steps()) for kept in checkpoints)):
        found = [
            run.restored(program, kept, experiment, corpus, console, newest=max(common))
            for program, kept, experiment, corpus in zip(programs, checkpoints, experiments, corpora, strict=True)
        ]
        restored = [pair for pair in found if pair is not None]
        if len(restored) == len(found) and len({info["step"] for _, info in restored}) == 1:
            console.log(f"resuming at step {restored[0][1]['step']}")
            return [state for state, _ in restored], [info for _, info in restored]
        # A checkpoint was damaged, and has been set aside.
    if any(kept.steps() for kept in checkpoints):
        console.log("the runs have no checkpoint of the same step, so all of them start again")
    states = [program.new_state(experiment.train.seed) for program, experiment in zip(programs, experiments, strict=True)]
    return states, [{"step": 0}] * len(states)


def by_device(place: MeshPlacement, f: Callable, in_axes: tuple[int | None, ...]) -> Callable:
    """`f` of one run, for several: each device does its share of them. in_axes: as of `jax.vmap`, 0 or None."""
    runs = over_runs(place)
    in_specs = tuple(PartitionSpec() if axis is None else runs for axis in in_axes)
    return jax.shard_map(jax.vmap(f, in_axes), mesh=place.mesh, in_specs=in_specs, out_specs=runs, check_vma=False)


def over_runs(place: MeshPlacement) -> PartitionSpec:
    """Arrays with a leading dim of runs, dealt out over all devices."""
    return PartitionSpec(place.mesh.axis_names)


def jit_steps(
    program: TrainModel, objective: Objective, experiments: Sequence[Experiment], options: Options
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """step(state, batch) -> (state, metrics) of all runs, jitted; every array has a leading dim of runs. The state is donated.

    program: of a run on its own device. options: the compiler's.
    """
    config, steps, clip_norm, place = experiments[0].optimizer, experiments[0].train.steps, experiments[0].optimizer.clip_norm, program.place
    rates_RS = np.stack([jax.vmap(make_schedule(e.optimizer, steps))(jnp.arange(steps)) for e in experiments])
    values = {key: np.array([getattr(e.optimizer, key) for e in experiments], np.float32) for key in IN_THE_OPTIMIZER}
    # What is the same for all stays a constant.
    numbers = {key: of_key for key, of_key in values.items() if len(set(of_key.tolist())) > 1}
    fixed = jax.device_put((numbers, rates_RS), NamedSharding(place.mesh, over_runs(place)))

    def one(fixed: tuple[dict[str, jax.Array], jax.Array], state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        numbers, rates_S = fixed
        return make_step(program.with_numbers(numbers), objective, lambda step: rates_S[step], clip_norm)(state, batch)

    jitted = jax.jit(by_device(place, one, (0, 0, 0)), donate_argnums=1, compiler_options=options or None)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        try:
            return jitted(fixed, state, batch)
        except jax.errors.TracerBoolConversionError as error:
            differ = ", ".join(f"optimizer.{key}" for key in numbers)
            raise UserError(f"optimizer.name={config.name}: decides by {differ} what to do, so runs that differ in it can't be together") from error

    return step


def stacked(states: list[TrainState], place: MeshPlacement) -> TrainState:
    """The states of several runs as one, with a leading dim of runs."""

    def stack(states: list[TrainState]) -> TrainState:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    return jax.jit(stack, out_shardings=NamedSharding(place.mesh, over_runs(place)))(states)


def parts_of(count: int) -> Callable[[Any], list[Any]]:
    """How to take a tree with a leading dim of runs apart: arrays of the host as they are, those of devices in one program."""

    def apart(tree: Any) -> list[Any]:
        return [jax.tree.map(operator.itemgetter(i), tree) for i in range(count)]

    @jax.jit
    def of_devices(tree: Any) -> list[Any]:
        return apart(jax.tree.map(lambda x: jax.sharding.reshard(x, PartitionSpec()), tree))

    return lambda tree: of_devices(tree) if any(isinstance(x, jax.Array) for x in jax.tree.leaves(tree)) else apart(tree)


class FeedTogether(Feed):
    """The batches of several runs, each as the run would have it alone: arrays [R, A, B / A, T]."""

    def __init__(self, corpora: list[data.Corpus], place: MeshPlacement, **settings: Any):
        super().__init__(corpora[0], place, **settings)
        self.corpora = corpora

    def make(self, number: int) -> Fed:
        """Batch `number` of every run; made once where runs have the same."""
        different = {id(corpus): corpus for corpus in self.corpora}
        batches = {key: corpus.batch(number) for key, corpus in different.items()}
        shas = {key: batch_sha(batch) if self.sha else None for key, batch in batches.items()}
        A, own = self.microbatches, [batches[id(corpus)] for corpus in self.corpora]
        rows = {name: np.stack([batch[name].reshape(A, self.batch_size // A, -1) for batch in own]) for name in own[0]}
        sharding = NamedSharding(self.place.mesh, over_runs(self.place))
        return Fed({name: jax.device_put(values, sharding) for name, values in rows.items()}, tuple(shas[id(corpus)] for corpus in self.corpora))
