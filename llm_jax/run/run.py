"""One run, from a resolved experiment to a run folder with everything in it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from llm_jax import data
from llm_jax import experiment as experiments
from llm_jax.core.console import Console
from llm_jax.core.errors import EXIT_DIVERGED, Stopped, UserError
from llm_jax.core.files import check_writable, locked, write_json
from llm_jax.core.format import short
from llm_jax.experiment import Experiment
from llm_jax.layout.check import check_model
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.model import accounting, transformer
from llm_jax.model.accounting import active_parameters, train_flops_per_token
from llm_jax.objective.next_token import make_objective
from llm_jax.processes import preflight
from llm_jax.processes.collective import broadcast_from_first, run_on_all
from llm_jax.processes.group import Group
from llm_jax.run import initial_weights, run_folder
from llm_jax.run.header import closing, header
from llm_jax.train import metrics
from llm_jax.train.checkpoint import Checkpoints
from llm_jax.train.compile import jit_step
from llm_jax.train.evaluation import Evaluator
from llm_jax.train.goodput import Goodput
from llm_jax.train.loader import Feed
from llm_jax.train.loop import Diverged, Loop
from llm_jax.train.peak_flops import device_peak
from llm_jax.train.rollback import Rollbacks, Spike, roll_back
from llm_jax.train.run_state import Running
from llm_jax.train.state import TrainModel, TrainState


@dataclass(frozen=True)
class Shared:
    """What runs of one process, one after another, need only once. None: each makes its own."""

    prepare: Callable[..., data.Corpus] | None = None
    """As `data.prepare`."""
    peak: Callable[..., float | None] | None = None
    """As `peak.device_peak`."""


ALONE = Shared()


def run(experiment: Experiment, group: Group, begun: float) -> int:
    """Trains, or goes on training, and returns the process's exit code. All processes of the group call it.

    begun: the `time.monotonic()` from which on the run's time is counted.
    """
    use_compilation_cache(experiment)
    console = Console(is_main_process=group.task.rank == 0)
    with contextlib.closing(console):
        try:
            return prepare_and_train(experiment, console, group, begun)
        except Stopped as stopped:
            console.log(stopped.early)
            return stopped.code


def prepare_and_train(experiment: Experiment, console: Console, group: Group, begun: float, shared: Shared = ALONE) -> int:
    """What can be wrong is told in the order of what it costs to find out; then the run folder is made, and the run goes on in it."""
    place = place_of(experiment)
    last = check_folder(experiment, group)
    if is_finished(experiment, last):
        console.log(f"nothing to do: the run in {experiment.run_dir} is finished, at step {last['step']} of {experiment.train.steps}")
        return 0
    corpus = prepare_corpus(experiment, shared, group, console.log)
    experiment = dataclasses.replace(experiment, model=experiment.model.resolved(corpus.tokenizer.vocab_size))
    check_layout(experiment, place)
    with_room = with_max_segments(experiment, corpus, place)  # not in the folder's config: other devices need others
    program = TrainModel(with_room.model, experiment.optimizer, place, experiment.train.ema_decay)
    if experiment.train.start_from and not initial_weights.has_begun(Path(experiment.run_dir)):
        run_on_all(group, "start", lambda: initial_weights.check_start(experiment, program))
    with opened(experiment, corpus, last, group, console):
        return train(with_room, program, corpus, console, group, begun, shared)


def train(experiment: Experiment, program: TrainModel, corpus: data.Corpus, console: Console, group: Group, begun: float, shared: Shared) -> int:
    """The run itself, in its folder, from the newest checkpoint or the start to its last word."""
    place = program.place
    with contextlib.ExitStack() as life:  # closes what is open, in turn, even where one of them fails
        checkpoints = Checkpoints(Path(experiment.run_dir), experiment.checkpoint, group, reach=experiment.train.rollback.reach)
        life.callback(checkpoints.close)
        preflight.check_room(group, Path(experiment.run_dir), checkpoints.room(program.abstract_state()))
        rollbacks = Rollbacks(Path(experiment.run_dir), group)

        def restore(newest: float = math.inf) -> tuple[TrainState, dict[str, Any]]:
            found = restored(program, checkpoints, experiment, corpus, console, newest)
            return found or (run_on_all(group, "first state", lambda: initial_weights.first_state(experiment, program, console.log)), {"step": 0})

        state, info = restore()
        if info["step"]:
            console.log(f"resuming at step {info['step']}" + (f"; roll-backs before: {len(rollbacks.list)}" if rollbacks.list else ""))
        measured = shared.peak or device_peak
        peak = broadcast_from_first(group, "peak", lambda: measured(place.mesh, experiment.model.compute_dtype, group.task.local_size))
        console.log(header(experiment, program, corpus, peak))
        running = make_running(life, experiment, checkpoints, rollbacks, corpus, info, begun, peak and peak * place.mesh.size)
        if running.goodput.notice:
            console.log(running.goodput.notice)
        feed = Feed(
            corpus,
            place,
            batch_size=experiment.train.batch_size,
            microbatches=experiment.train.microbatches,
            sha=experiment.train.batch_sha,
            batch_of=rollbacks.batch,
        )
        life.callback(feed.close)
        loop = Loop(
            group=group,
            step=jit_step(program, make_objective(experiment.objective), experiment.optimizer, experiment.train.steps),
            feed=feed,
            evaluate=Evaluator(program, corpus, experiment.train, experiment.evaluate, group),
            runs=[running],
            console=console,
            train=experiment.train,
            evaluation=experiment.evaluate,
            checkpointing=experiment.checkpoint,
        )
        code, stopped = 0, None
        try:
            while True:
                try:
                    with jax.set_mesh(place.mesh):
                        state = loop.run(state, info["step"], evaluation_due=bool(info.get("evaluation_due")))
                    break
                except Spike as raised:
                    spike = raised.with_traceback(None)  # its frames hold the state, and there may not be room for two
                state, info = roll_back(spike, running, rollbacks, restore, console.log)
            with jax.set_mesh(place.mesh):
                if experiment.sample.tokens:
                    with running.goodput.spent_on("sample"):
                        show_samples(program, state, corpus, experiment, console, group)
        except Stopped as error:
            if not group.armed:  # not a step was done
                raise
            code, stopped = error.code, error
        except Diverged as error:
            console.log(f"the run diverged: {error}")
            code = EXIT_DIVERGED
        settle([running], group)
        if stopped:
            console.log(f"{stopped} at step {running.latest['step']}; checkpoint saved; the same command goes on from here")
        if group.task.rank == 0:
            last_word(experiment, program, running, peak, code, console)
    return code


def settle(runs: Sequence[Running], group: Group) -> None:
    """Waits until what was saved of these runs is durable, on all processes."""
    group.mark("save")
    for running in runs:
        running.goodput.spend("checkpoint")
    for running in runs:
        running.checkpoints.wait()
    group.exchange("saved")
    group.mark("end")


def prepare_corpus(experiment: Experiment, shared: Shared, group: Group, log: Callable[[str], None]) -> data.Corpus:
    """The corpus that the experiment asks for. The first process builds what the cache doesn't have yet; then one on every other host does,
    where the cache is another one; and the rest find all of it.

    Raises UserError, naming a host, where it has other documents than the first.
    """

    def prepare() -> data.Corpus:
        return (shared.prepare or data.prepare)(
            experiment.data,
            initial_weights.with_own_tokenizer(experiment),
            sequence_length=experiment.train.sequence_length,
            batch_size=experiment.train.batch_size,
            seed=experiment.train.seed,
            run_dir=None,
            log=log,
        )

    group.mark("data")
    rank, local_rank = group.task.rank, group.task.local_rank
    turns = (rank == 0, rank > 0 and local_rank == 0, rank > 0 and local_rank > 0)
    made = [run_on_all(group, f"corpus, turn {i}", prepare, runs=mine) for i, mine in enumerate(turns)]
    corpus = next(corpus for corpus in made if corpus is not None)
    (first, name), *others = group.exchange("corpus", [corpus.fingerprint, group.task.name])
    for fingerprint, other in others:
        if fingerprint != first:
            raise UserError(
                f"data.source={experiment.data.source}: {other} has other documents (fingerprint {fingerprint[:12]}) than {name} ({first[:12]}); "
                "give all hosts the same"
            )
    return corpus


def check_folder(experiment: Experiment, group: Group) -> dict[str, Any]:
    """The summary of the last start in the run folder (empty if there was none). Raises UserError where this run can't live there."""

    def check() -> dict[str, Any]:
        run_dir = Path(experiment.run_dir)
        check_writable(run_dir)
        initial_weights.check_folder(experiment)
        run_folder.check_same_run(run_dir, experiments.to_yaml(experiment), open_keys=("model.vocab",) if experiment.model.vocab is None else ())
        return run_folder.last_summary(run_dir)

    return broadcast_from_first(group, "run folder", check)


def is_finished(experiment: Experiment, last: Mapping[str, Any]) -> bool:
    """Whether a last start with this summary did all steps."""
    return last.get("state") == "finished" and last["step"] >= experiment.train.steps


@contextlib.contextmanager
def opened(experiment: Experiment, corpus: data.Corpus, last: Mapping[str, Any], group: Group, console: Console) -> Iterator[None]:
    """The run folder, made and held for the group, with its configuration, its tokenizer and a log. `last`: of `check_folder`."""
    run_dir, yaml = Path(experiment.run_dir), experiments.to_yaml(experiment)

    def open_folder() -> list[str]:
        run_folder.make_folder(run_dir)
        held.enter_context(locked(run_dir, console.log))
        changed = run_folder.check_same_run(run_dir, yaml)
        run_folder.write_config(run_dir, yaml)
        console.log_to(run_dir / "log.txt")
        corpus.tokenizer.save(run_dir / "tokenizer")
        return changed

    with contextlib.ExitStack() as held, run_folder.usable(run_dir):
        changed = broadcast_from_first(group, "open", open_folder)
        group.record_faults_in(run_dir)
        for change in changed:
            console.log(f"differs from the last start in this run folder: {change}")
            if change.startswith("train.steps:") and experiment.optimizer.schedule != "constant":
                steps, schedule = experiment.train.steps, experiment.optimizer.schedule
                console.log(f"the learning-rate schedule ({schedule}) now ends at step {steps}: the rate may jump here")
        if last.get("state") == "diverged":
            console.log(f"the last start diverged at step {last['step']}; this one takes the same steps again, and is likely to diverge again")
        yield


def make_running(
    life: contextlib.ExitStack,
    experiment: Experiment,
    checkpoints: Checkpoints,
    rollbacks: Rollbacks,
    corpus: data.Corpus,
    info: Mapping[str, Any],
    begun: float,
    peak_flops: float | None,
    label: str = "",
) -> Running:
    """A run that goes on from a checkpoint with this `info`; what it writes to is closed with `life`."""
    run_dir = Path(experiment.run_dir)
    writes = checkpoints.group.task.rank == 0
    writer = metrics.MetricsWriter(run_dir) if writes else None
    if writer:
        life.callback(writer.close)
    goodput = Goodput(begun)
    goodput.resume(run_dir, info.get("seconds", {}), writes)
    life.callback(goodput.write)
    t = experiment.train
    running = Running(
        train=t,
        checkpoints=checkpoints,
        writer=writer,
        goodput=goodput,
        rollbacks=rollbacks,
        info={"corpus": corpus.fingerprint},
        corpus=corpus,
        flops_per_step=train_flops_per_token(experiment.model, t.sequence_length) * t.batch_size * t.sequence_length,
        peak_flops=peak_flops,
        label=label,
    )
    running.begin(info)
    return running


def last_word(
    experiment: Experiment,
    program: TrainModel,
    running: Running,
    peak: float | None,
    code: int,
    console: Console,
    more: Mapping[str, Any] | None = None,
) -> None:
    """summary.json, with `more` in it, and the loss curve; a finished run's are also said."""
    run_dir = Path(experiment.run_dir)
    summary = summarise(experiment, program, running, peak) | dict(more or {})
    summary["state"] = {0: "finished", EXIT_DIVERGED: "diverged"}.get(code, "stopped")
    if running.diverged:
        summary["reason"] = running.diverged.partition(";")[0]
    curve = metrics.draw_loss_curve(run_dir, f"{experiment.name}: {short(summary['parameters'])} parameters")
    summary |= running.goodput.summary()  # to the very end
    write_json(run_dir / "summary.json", summary)
    if code == 0:
        console.log(running.label + closing(summary, run_dir, curve))


def use_compilation_cache(experiment: Experiment) -> None:
    """Compiled programs are kept beside the token cache, unless JAX_COMPILATION_CACHE_DIR says otherwise."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(experiment.data.cache_path() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def place_of(experiment: Experiment) -> MeshPlacement:
    """Where arrays live on the devices that are here. Raises UserError for what can't run on them, before anything is read or compiled."""
    place = MeshPlacement(experiment.layout, make_mesh(experiment.layout, experiment.mesh))
    check_layout(experiment, place)
    transformer.check(experiment.model, place, experiment.train.sequence_length)
    return place


def check_layout(experiment: Experiment, place: MeshPlacement) -> None:
    """Raises UserError for a batch or a model that the layout can't split."""
    train = experiment.train
    batch_key = "train.batch_size" + ("/train.microbatches" if train.microbatches > 1 else "")
    length = (train.sequence_length, "train.sequence_length")
    check_model(experiment.model, place, {"batch": (train.batch_size // train.microbatches, batch_key), "sequence": length, "keys": length})


def with_max_segments(experiment: Experiment, corpus: data.Corpus, place: MeshPlacement) -> Experiment:
    """The experiment with room in fused attention for the documents of every row that the run will see.

    UserError where `model.max_segments` is given and too small.
    """
    model, train = experiment.model, experiment.train
    if model.attention != "cudnn":
        return experiment
    rows = train.batch_size // place.size(place.axes("batch"))
    steps = train.steps + train.rollback.most_skipped
    needed = corpus.max_documents_per_row(steps=steps, group=rows // train.microbatches, held_out_group=rows)
    if model.max_segments is not None and model.max_segments < needed:
        raise UserError(
            f"model.max_segments={model.max_segments}: the packed rows of this run hold up to {needed} documents each, on average over a device's "
            f"rows; use model.max_segments={needed}, or null to have them counted"
        )
    return dataclasses.replace(experiment, model=dataclasses.replace(model, max_segments=model.max_segments or needed))


def restored(
    program: TrainModel, checkpoints: Checkpoints, experiment: Experiment, corpus: data.Corpus, console: Console, newest: float = math.inf
) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest readable checkpoint's state and info, of those up to the step `newest`; None where there is none."""
    found = checkpoints.restore_latest(program.abstract_state(), console.log, newest) if checkpoints.steps() else None
    if found is None:
        return None
    state, info = found
    if info["corpus"] != corpus.fingerprint:
        raise UserError(
            f"data.source={experiment.data.source}: is not what this run was trained on (fingerprint {corpus.fingerprint[:12]}, "
            f"the checkpoint's is {info['corpus'][:12]}); choose another run_dir, or bring the data back"
        )
    return state, {**info, "step": int(state.step)}


def show_samples(program: TrainModel, state: TrainState, corpus: data.Corpus, experiment: Experiment, console: Console, group: Group) -> None:
    """Lets the model write, says it and keeps it in samples.txt."""
    from llm_jax.generate.sample import sample_texts

    parameters = state.parameters if state.average is None else state.average
    window, seed = experiment.train.sequence_length, experiment.train.seed

    def between() -> None:
        group.mark("sample", experiment.train.steps)
        group.check()

    texts = sample_texts(program, parameters, corpus.tokenizer, experiment.sample, window, seed, between)
    shown = [
        f"--- sample {i + 1}, prompt {prompt!r}\n{prompt}{text}"
        for i, (prompt, text) in enumerate(zip(experiment.sample.prompts, texts, strict=True))
    ]
    if group.task.rank == 0:
        (Path(experiment.run_dir) / "samples.txt").write_text("\n\n".join(shown) + "\n")
    for text in shown:
        console.log(text)


def summarise(experiment: Experiment, program: TrainModel, running: Running, peak: float | None) -> dict[str, Any]:
    """The last word on a run: the keys of summary.json that other programs read."""
    latest, clock, place = running.latest, running.clock, program.place
    tokens_per_step = experiment.train.batch_size * experiment.train.sequence_length
    seconds = clock.seconds / clock.steps if clock.steps else None
    step = latest.get("step", 0)
    tokens = step * tokens_per_step
    counted = accounting.account(experiment.model, experiment.train.sequence_length, tokens)
    return {
        "experiment": experiment.name,
        **({"start_from": experiment.train.start_from} if experiment.train.start_from else {}),
        "step": step,
        **counted,
        "parameters_active": active_parameters(experiment.model, counted["parameters"]),
        "tokens": tokens,
        "unique_tokens": running.corpus.unique_tokens(step),
        "train_flops": counted["flops_exact"],
        "train_loss": latest.get("train_loss"),
        "eval_loss": latest.get("eval_loss"),
        "eval_bits_per_byte": latest.get("eval_bits_per_byte"),
        "epochs": latest.get("epoch"),
        "bad_steps": latest.get("bad_steps", 0),
        "rollbacks": len(running.rollbacks.list),
        "batches_skipped": running.rollbacks.skipped,
        "tokens_per_second": tokens_per_step / seconds if seconds else None,
        "mfu": running.mfu(seconds) if seconds else None,
        "mfu_convention": "6 FLOPs per matmul weight and token, causal attention, over peak_flops_per_second of all devices",
        "peak_flops_per_second": peak,
        "first_step_seconds": clock.first_step_seconds,
        **running.goodput.summary(),
        "devices": place.mesh.size,
        "device_kind": place.mesh.devices.flat[0].device_kind,
        "mesh": ", ".join(f"{name}={size}" for name, size in place.mesh.shape.items()),
        "layout": experiment.layout.name,
        "jax": jax.__version__,
        "python": sys.version.split()[0],
    }
