"""One run, or several of one shape at once: from an experiment to a run folder with everything in it."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from llm_jax import data
from llm_jax import experiment as experiments
from llm_jax.core.console import Console
from llm_jax.core.errors import EXIT_DIVERGED, Stopped, UserError
from llm_jax.core.files import locked
from llm_jax.data.chat_template import save_template
from llm_jax.experiment import Experiment
from llm_jax.generate.sample import Sampler
from llm_jax.layout.compilation_cache import use_compilation_cache
from llm_jax.processes import preflight
from llm_jax.processes.collective import broadcast_from_first, run_on_all
from llm_jax.processes.group import Group
from llm_jax.run import initial_weights, run_folder
from llm_jax.run.before_and_after import BeforeAndAfter
from llm_jax.run.frozen import check_frozen, frozen_identities, read_frozen
from llm_jax.run.header import header
from llm_jax.run.precomputed import attach_precomputed
from llm_jax.run.prepare import (
    NO_SERVICES,
    RunPlan,
    RunServices,
    TaskScores,
    check_folder,
    encoder_settings,
    is_finished,
    make_plan,
    place_of,
    prepare_corpus,
    with_vocabulary_of,
)
from llm_jax.run.quantized_base import loss_difference
from llm_jax.run.summary import write_summary
from llm_jax.train import metrics
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.compile import jit_step
from llm_jax.train.evaluation import Evaluator, HeldOut
from llm_jax.train.flops import flops_per_token
from llm_jax.train.goodput import Goodput
from llm_jax.train.loader import BatchSource, Loader
from llm_jax.train.loop import Diverged, Loop, only
from llm_jax.train.peak_flops import device_peak
from llm_jax.train.rollback import Rollbacks
from llm_jax.train.run_state import RunState
from llm_jax.train.state import Frozen, TrainState


@dataclass(frozen=True)
class Stepper:
    """The functions that train one run by itself, or several runs in one program (`scaling.vmapped_runs`)."""

    step: Callable[[TrainState, Any, Frozen], tuple[TrainState, dict[str, jax.Array]]]
    source: BatchSource
    evaluate: Callable[[TrainState], dict[str, Any] | None]
    join: Callable[[list[TrainState]], TrainState]
    """The states of the runs as one."""
    parts: Callable[[Any], list[Any]]
    """Takes a tree of all runs apart: one tree for each run."""


def one_run(
    plans: Sequence[RunPlan],
    runs: Sequence[RunState],
    frozen: Frozen,
    group: Group,
    tasks: TaskScores | None = None,
) -> Stepper:
    """Trains one run by itself, under any layout. tasks: evaluates it on tasks too."""
    (plan,), (running,) = plans, runs
    e, objective = plan.experiment, plan.experiment.objective
    held_out = HeldOut(
        plan.model, objective, running.examples, plan.corpus.tokenizer, e.train.batch_size, plan.frozen
    )
    return Stepper(
        step=jit_step(plan.model, objective, e.optimizer, e.train.steps, plan.frozen),
        source=objective.source(
            Loader(running.examples, objective, plan.place, e.train, running.rollbacks.batch)
        ),
        evaluate=Evaluator(held_out, e.train, e.evaluate, group, frozen, tasks),
        join=lambda states: states[0],
        parts=only,
    )


def run(experiment: Experiment, group: Group, begun: float, services: RunServices = NO_SERVICES) -> int:
    """Trains, or resumes training, and returns the process's exit code. All processes of the group call it.

    begun: the `time.monotonic()` from which the run's time is counted.
    """
    use_compilation_cache()
    console = Console(is_main_process=group.task.rank == 0)
    with contextlib.closing(console):
        try:
            return prepare_and_train(experiment, console, group, begun, services)
        except Stopped as stopped:
            console.log(stopped.early)
            return stopped.code


def prepare_and_train(
    experiment: Experiment, console: Console, group: Group, begun: float, services: RunServices = NO_SERVICES
) -> int:
    """Checks everything in the order of what it costs, then makes the run folder and trains in it."""
    place = place_of(experiment)
    last = check_folder(experiment, group)
    if is_finished(experiment, last):
        done, asked = last["step"], experiment.train.steps
        where = f"step {done} of {asked}" if done <= asked else f"step {done}, beyond train.steps={asked}"
        console.log(f"nothing to do: the run in {experiment.run_dir} is finished, at {where}")
        return 0
    corpus = prepare_corpus(experiment, services, group, console.log)
    experiment = with_vocabulary_of(experiment, corpus)
    plan = make_plan(experiment, place, corpus)
    if experiment.train.start_from and not initial_weights.has_begun(plan.run_dir):
        run_on_all(group, "start", lambda: initial_weights.check_start(experiment, plan.model))
    tasks = None
    if experiment.evaluate.tasks:
        if services.tasks is None:
            raise UserError(
                f"evaluate.tasks={experiment.evaluate.tasks}: is for runs of python -m llm_jax.launch"
            )
        tasks = services.tasks(plan, console.log)
    with open_run_folder(experiment, corpus, last, group, console):
        stepper = functools.partial(one_run, tasks=tasks)
        return train([plan], console, group, begun, services, stepper)[0]


def train(
    plans: Sequence[RunPlan],
    console: Console,
    group: Group,
    begun: float,
    services: RunServices = NO_SERVICES,
    make_stepper: Callable[[Sequence[RunPlan], Sequence[RunState], Frozen, Group], Stepper] = one_run,
    note: str = "",
    more: Mapping[str, Any] | None = None,
) -> list[int]:
    """Trains runs in their folders, from their newest common checkpoint or the start to their summaries;
    returns their exit codes.

    Several runs are trained in lockstep, by the stepper. note: a line below the header. more: keys of every
    summary.json.
    """
    first, count = plans[0], len(plans)
    e, place = first.experiment, first.place
    with contextlib.ExitStack() as life:  # closes what is open, in turn, even where one of them fails
        score, reach = e.objective.score, e.train.rollback.reach
        checkpoints = [
            Checkpoints(plan.run_dir, plan.experiment.checkpoint, group, reach=reach, score=score)
            for plan in plans
        ]
        for kept in checkpoints:
            life.callback(kept.close)
        preflight.check_room(
            group,
            first.run_dir,
            sum(
                kept.room(plan.model.abstract_state()) for kept, plan in zip(checkpoints, plans, strict=True)
            ),
        )
        rollbacks = [Rollbacks(plan.run_dir, group) for plan in plans]
        identities = run_on_all(group, "frozen identities", lambda: frozen_identities(e))
        for plan in plans:
            attach_precomputed(plan, identities, group, console.log)
        frozen = run_on_all(
            group, "frozen models", lambda: read_frozen(e, first.model, first.frozen, console.log)
        )
        start = functools.partial(start_or_resume, plans, checkpoints, rollbacks, identities, group, console)
        states, infos = start()
        peak = broadcast_from_first(
            group,
            "peak",
            lambda: (services.peak or device_peak)(place.mesh, e.model.compute_dtype, group.task.local_size),
        )
        console.log(header(first, peak) + (f"\n{note}" if note else ""))
        runs = [
            make_run_state(life, *parts, identities, begun, peak and peak * place.mesh.size)
            for parts in zip(plans, checkpoints, rollbacks, infos, strict=True)
        ]
        for running in runs:
            if running.goodput.notice:
                console.log(running.label + running.goodput.notice)
        stepper = make_stepper(plans, runs, frozen, group)
        life.callback(stepper.source.close)
        measures = [BeforeAndAfter(plan, frozen, console, group) for plan in plans]
        measured: list[Mapping[str, Any]] = [{} for _ in plans]

        def restore(newest: int) -> tuple[TrainState, dict[str, Any]]:
            states, infos = start(newest)
            return stepper.join(states), infos[0]

        loop = Loop(
            group=group,
            step=stepper.step,
            source=stepper.source,
            evaluate=stepper.evaluate,
            runs=runs,
            console=console,
            train=e.train,
            evaluation=e.evaluate,
            checkpointing=e.checkpoint,
            objective=e.objective,
            frozen=frozen,
            parts=stepper.parts,
            recover=(lambda spike: runs[0].roll_back(spike, restore, console.log)) if count == 1 else None,
        )
        stopped_code = 0
        try:
            with jax.set_mesh(place.mesh):
                state = stepper.join(states)
                if infos[0]["step"] == 0:
                    for measure, own in zip(measures, states, strict=True):
                        measure.before(own)
                    if e.adapter.base:
                        console.log(loss_difference(first, states[0], frozen, group))
                del states
                state = loop.run(
                    state, infos[0]["step"], evaluation_due=any(info.get("evaluation_due") for info in infos)
                )
                loop.spend("sample")
                for i, (plan, own) in enumerate(zip(plans, stepper.parts(state), strict=True)):
                    if runs[i].diverged:
                        continue
                    if plan.experiment.sample.tokens and plan.experiment.objective.reads == "text":
                        write_samples(plan, own, frozen, console, group)
                    measured[i] = measures[i].after(own)
        except Stopped as stopped:
            if not group.armed:  # no step was done
                raise
            stopped_code = stopped.code
            stopped_line = (
                f"{stopped} at step {loop.live()[0].latest['step']}; checkpoint{'s' * (count > 1)} saved"
            )
        except Diverged as error:
            console.log(f"the run diverged: {error}" if count == 1 else f"all {count} runs diverged")
        wait_for_saves(runs, group)
        if stopped_code:
            console.log(f"{stopped_line}; run the same command again to resume")
        codes = [EXIT_DIVERGED if running.diverged else stopped_code for running in runs]
        if group.task.rank == 0:
            for plan, running, code, found in zip(plans, runs, codes, measured, strict=True):
                write_summary(plan, running, peak, code, console, {**(more or {}), **found})
    return codes


def start_or_resume(
    plans: Sequence[RunPlan],
    checkpoints: Sequence[Checkpoints],
    rollbacks: Sequence[Rollbacks],
    identities: Mapping[str, Mapping[str, Any]],
    group: Group,
    console: Console,
    newest: float = math.inf,
) -> tuple[list[TrainState], list[dict[str, Any]]]:
    """Each run's state and checkpoint info at the newest step, up to `newest`, of which all have a readable
    checkpoint, or at the start.
    """
    while common := set.intersection(
        *({step for step in kept.steps() if step <= newest} for kept in checkpoints)
    ):
        found = [
            restore_latest(plan, kept, identities, console, max(common))
            for plan, kept in zip(plans, checkpoints, strict=True)
        ]
        restored = [pair for pair in found if pair is not None]
        if len(restored) == len(found) and len({info["step"] for _, info in restored}) == 1:
            before = len(rollbacks[0].list)
            console.log(
                f"resuming at step {restored[0][1]['step']}"
                + (f"; roll-backs before: {before}" if before else "")
            )
            return [state for state, _ in restored], [info for _, info in restored]
        # A checkpoint was damaged, and has been set aside.
    if len(plans) > 1 and any(kept.steps() for kept in checkpoints):
        console.log("the runs have no checkpoint of the same step, so all of them start again")
    states = []
    for plan in plans:
        make = functools.partial(initial_weights.initial_state, plan.experiment, plan.model, console.log)
        states.append(run_on_all(group, "first state", make))
    return states, [{"step": 0}] * len(plans)


def restore_latest(
    plan: RunPlan,
    checkpoints: Checkpoints,
    identities: Mapping[str, Mapping[str, Any]],
    console: Console,
    newest: float,
) -> tuple[TrainState, dict[str, Any]] | None:
    """The state and info of the newest readable checkpoint up to the step `newest`; None where there is none.

    Raises UserError for a checkpoint that was trained on other data, or beside other frozen models.
    """
    found = checkpoints.restore_latest(plan.model.abstract_state(), console.log, newest)
    if found is None:
        return None
    state, info = found
    if info["corpus"] != plan.corpus.fingerprint:
        raise UserError(
            f"data.source={plan.experiment.data.source}: is not what this run was trained on (fingerprint "
            f"{plan.corpus.fingerprint[:12]}, "
            f"the checkpoint's is {info['corpus'][:12]}): the data changed, or how an updated program "
            "divides or encodes them. Choose another run_dir, or bring the data back"
        )
    check_frozen(info.get("frozen", {}), identities)
    return state, {**info, "step": int(state.step)}


@contextlib.contextmanager
def open_run_folder(
    experiment: Experiment, corpus: data.Corpus, last: Mapping[str, Any], group: Group, console: Console
) -> Iterator[None]:
    """The run folder, made and held for the group, with its configuration, its tokenizer and a log.

    `last`: of `check_folder`.
    """
    run_dir, yaml = Path(experiment.run_dir), experiments.to_yaml(experiment)

    def open_folder() -> list[str]:
        run_folder.make_folder(run_dir)
        held.enter_context(locked(run_dir, console.log))
        changed = run_folder.check_same_run(run_dir, yaml)
        run_folder.write_config(run_dir, yaml)
        console.log_to(run_dir / "log.txt")
        folder = run_dir / initial_weights.TOKENIZER
        corpus.tokenizer.save(folder)
        if experiment.objective.reads == "record":
            settings = encoder_settings(experiment)
            save_template(settings.chat, settings.tokenizer, folder)
        return changed

    with contextlib.ExitStack() as held, run_folder.usable(run_dir):
        changed = broadcast_from_first(group, "open", open_folder)
        group.record_faults_in(run_dir)
        for change in changed:
            console.log(f"differs from the last start in this run folder: {change}")
            if change.startswith("train.steps:") and experiment.optimizer.schedule != "constant":
                steps, schedule = experiment.train.steps, experiment.optimizer.schedule
                console.log(
                    f"the learning-rate schedule ({schedule}) now ends at step {steps}: the rate may jump "
                    "here"
                )
        if last.get("state") == "diverged":
            console.log(
                f"the last start diverged at step {last['step']}; this one takes the same steps again, "
                "and is likely to diverge again"
            )
        yield


def make_run_state(
    life: contextlib.ExitStack,
    plan: RunPlan,
    checkpoints: Checkpoints,
    rollbacks: Rollbacks,
    info: Mapping[str, Any],
    identities: Mapping[str, Mapping[str, Any]],
    begun: float,
    peak_flops: float | None,
) -> RunState:
    """A run that resumes from a checkpoint with this `info`; the files that it writes to are closed with
    `life`.
    """
    objective, t = plan.experiment.objective, plan.experiment.train
    writes = checkpoints.group.task.rank == 0
    writer = metrics.MetricsWriter(plan.run_dir) if writes else None
    if writer:
        life.callback(writer.close)
    goodput = Goodput(begun)
    goodput.resume(plan.run_dir, info.get("seconds", {}), writes)
    life.callback(goodput.write)
    frozen = {role: model.config for role, model in plan.frozen.items()}
    tokens = objective.tokens_per_step(t.batch_size, t.sequence_length)
    running = RunState(
        train=t,
        checkpoints=checkpoints,
        writer=writer,
        goodput=goodput,
        rollbacks=rollbacks,
        info={"corpus": plan.corpus.fingerprint, **({"frozen": dict(identities)} if identities else {})},
        corpus=plan.corpus,
        examples=plan.examples,
        objective=objective,
        flops_per_step=flops_per_token(objective, plan.model, t.sequence_length, frozen) * tokens,
        peak_flops=peak_flops,
        label=plan.label,
    )
    running.begin(info)
    return running


def write_samples(plan: RunPlan, state: TrainState, frozen: Frozen, console: Console, group: Group) -> None:
    """Lets the trained model continue the prompts of the experiment, into the log and samples.txt."""
    experiment, tokenizer = plan.experiment, plan.corpus.tokenizer
    parameters = plan.model.whole(state.parameters if state.average is None else state.average, frozen.rest)

    def between() -> None:
        group.mark("sample", experiment.train.steps)
        group.check()

    window, seed, config = experiment.train.sequence_length, experiment.train.seed, experiment.sample
    texts: list[str] = []
    if config.prompts:
        prompts = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in config.prompts]
        texts = Sampler(plan.model, tokenizer, prompts, config, window, seed).texts(parameters, between)
    shown = [
        f"--- sample {i + 1}, prompt {prompt!r}\n{prompt}{text}"
        for i, (prompt, text) in enumerate(zip(config.prompts, texts, strict=True))
    ]
    if group.task.rank == 0:
        (plan.run_dir / "samples.txt").write_text("\n\n".join(shown) + "\n")
    for text in shown:
        console.log(text)


def wait_for_saves(runs: Sequence[RunState], group: Group) -> None:
    """Waits until what was saved of these runs is durable, on all processes."""
    group.mark("save")
    for running in runs:
        running.goodput.spend("checkpoint")
    for running in runs:
        running.checkpoints.wait()
    group.exchange("saved")
    group.mark("end")
