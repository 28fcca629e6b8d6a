"""Evaluates a model on tasks: what `python -m llm_jax.evaluate RUN_OR_FOLDER tasks=...` does.

Each task has two files in the folder of evaluations, whose names have a hash of all that samples depend on
(weights, tokenizer, items, dtype, layout, convention, code):

    TASK.HASH.samples.jsonl.zst   what the model did with each item, appended batch by batch (samples.py)
    TASK.HASH.json                the result, written once all samples are there (task_scores.py)

A result that is there is not computed again, unless the code that makes it of samples has changed; samples
that are there are not either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from llm_jax.core.arithmetic import finite
from llm_jax.core.errors import UserError
from llm_jax.core.files import Busy, check_writable, locked, make_folder, read_json, write_json
from llm_jax.core.log import log_to_stderr
from llm_jax.data import Tokenizer
from llm_jax.data.config import DataConfig
from llm_jax.evaluate.chat_prompts import NO_TEMPLATE, ChatPrompts
from llm_jax.evaluate.code_sandbox import sandbox_line
from llm_jax.evaluate.contamination import texts_to_find, with_and_without
from llm_jax.evaluate.encode import Convention, convention_of, shown_ids
from llm_jax.evaluate.item_requests import EncodedItem, encode_items
from llm_jax.evaluate.model_key import ModelKey, model_key, scores_version
from llm_jax.evaluate.ngrams import Overlap
from llm_jax.evaluate.samples import ENDING, append_samples, read_samples
from llm_jax.evaluate.task_evaluator import TaskEvaluator, TaskSettings
from llm_jax.evaluate.task_scores import estimate, score_samples
from llm_jax.evaluate.tasks.registry import ready
from llm_jax.evaluate.tasks.shots import limited, with_shots
from llm_jax.evaluate.tasks.task import Item, Task, check_items, task_hash
from llm_jax.evaluate.training_text import overlaps_of_tasks
from llm_jax.generate.chat import template_of
from llm_jax.pretrained.model import check_outputs, open_model, read_tokenizer
from llm_jax.pretrained.source import ModelSource, open_source

PROGRESS_SECONDS = 10.0
"""Between lines about how far a task is."""


@dataclass(frozen=True)
class TaskRun:
    """A task of one evaluation: its items, and where its files are."""

    task: Task
    items: Sequence[Item]
    items_hash: str
    """`task_hash` of the items."""
    result_file: Path
    result: Mapping[str, Any] = field(default_factory=dict)
    """The result, if it is there already."""
    encoded: Sequence[EncodedItem] = ()
    """The items as token ids, if there is no result yet."""
    skipped: int = 0
    """Items that are too long and left out."""

    @property
    def samples_file(self) -> Path:
        """The file of the task's samples."""
        return self.result_file.with_name(self.result_file.name.removesuffix(".json") + ENDING)


def evaluate_tasks(
    path: Path,
    tasks: Sequence[Task],
    settings: TaskSettings,
    *,
    out: Path | None = None,
    log: Callable[[str], None] = log_to_stderr,
    **options: Any,
) -> list[dict[str, Any]]:
    """The result of each task, in order; `result_of` has the keys.

    out: the folder of the evaluations; None: RUN/evaluations/STEP of a run, and a folder in the cache, by the
    weights, for other models. options: those of `open_model`. Raises UserError before anything is computed
    where data is missing, an item can't be scored, or the folder can't be written.
    """
    source = open_source(path, adapter=options.get("adapter"))
    tokenizer = tokenizer_of(source, path, log)
    check_available(tasks)
    read = [items_of(task, settings, log) for task in tasks]
    chat = None
    if settings.chat:
        check_chat(settings, [task for task, _ in read])
        chat = ChatPrompts(template_of(source.path, source.experiment, "chat", NO_TEMPLATE), tokenizer)
    convention = convention_of(source, tokenizer, settings.too_long, chat)
    key = model_key(source, tokenizer, convention, options)
    folder = out or evaluations_folder(source.path, key.step, key.weights_hash)
    check_writable(folder, "out")
    runs = [task_run(task, items, key, settings, folder) for task, items in read]
    left = [run for run in runs if not run.result]
    if not left:
        return [as_asked(run.result, settings, path) for run in runs]
    left = [with_ids(run, tokenizer, convention) for run in left]
    log(f"{path}: {convention.line}")
    log(f"the first item of {left[0].task.name}: {first_ids(left[0], tokenizer)}")
    make_folder(folder, "out")
    with contextlib.ExitStack() as life:
        hold(left, life, log)
        options = {name: value for name, value in options.items() if name != "adapter"}
        opened = open_model(source, **options, log=log)
        if opened.step != key.step:  # the newest checkpoint is damaged
            key = model_key(source, tokenizer, convention, {**options, "step": opened.step})
            folder = out or evaluations_folder(source.path, key.step, key.weights_hash)
            make_folder(folder, "out")
            moved = [task_run(run.task, run.items, key, settings, folder) for run in left]
            left = [
                dataclasses.replace(new, encoded=old.encoded, skipped=old.skipped)
                for new, old in zip(moved, left, strict=True)
            ]
            hold(left, life, log)
        if settings.execute and any(run.task.kind == "code" for run in left):
            log(sandbox_line())
        evaluator = TaskEvaluator(opened, settings, log)
        texts = {
            run.task.name: texts_to_find(run.task, [one.item for one in run.encoded], settings.shots)
            for run in left
        }
        overlaps = overlaps_of_tasks(source.path, texts, log) if jax.process_index() == 0 else {}
        with jax.set_mesh(opened.place.mesh):
            made = {
                run.task.name: complete(run, evaluator, key, settings, overlaps.get(run.task.name), log)
                for run in left
            }
    return [as_asked(run.result, settings, path) or made[run.task.name] for run in runs]


def tokenizer_of(source: ModelSource, path: Path, log: Callable[[str], None]) -> Tokenizer:
    """The tokenizer of a model that can be evaluated on tasks. Raises UserError for one that can't."""
    check_outputs(source.experiment.model.outputs, str(path), "logits")
    tokenizer = read_tokenizer(source.path, log)
    if tokenizer is None:
        raise UserError(f"{path}: has no tokenizer, and tasks are text. Put its tokenizer.json there")
    return tokenizer


def hold(runs: Sequence[TaskRun], life: contextlib.ExitStack, log: Callable[[str], None]) -> None:
    """Locks the files of samples, for as long as `life` lasts: two processes would append to one file. Other
    tasks of the model may be evaluated meanwhile. Raises UserError where another process has a file."""
    for run in runs:
        run.samples_file.touch()
        try:
            life.enter_context(locked(run.samples_file, log))
        except Busy as error:
            raise UserError(
                f"tasks={run.task.name}: another process evaluates this model on it, in "
                f"{run.samples_file.parent}. Wait for it, or give out=FOLDER"
            ) from error


def check_available(tasks: Sequence[Task]) -> None:
    """Raises UserError for the first task whose files are absent, before any are read."""
    for task in tasks:
        try:
            if task.available:
                task.available()
        except UserError as error:
            known = str(error).startswith("data=")
            raise error if known else UserError(f"tasks={task.name}: {error}") from error


def as_asked(result: Mapping[str, Any], settings: TaskSettings, path: Path) -> dict[str, Any]:
    """A result that was there already, with the settings of this evaluation: others may have chosen the same
    items (another limit above their number). Empty for none."""
    if not result:
        return {}
    return {
        **result,
        "shots": settings.shots,
        "limit": settings.limit,
        "seed": settings.seed,
        "path": str(path),
    }


def check_chat(settings: TaskSettings, tasks: Sequence[Task]) -> None:
    """Raises UserError for what contexts in a chat template can't be combined with."""
    if settings.too_long == "left":
        raise UserError(
            "too_long=left: would leave out the beginning of the chat template. Give too_long=skip"
        )
    if code := next((task.name for task in tasks if task.kind == "code"), None):
        raise UserError(f"chat=true: the programs of {code} are continued, not answered. Leave one out")


def items_of(task: Task, settings: TaskSettings, log: Callable[[str], None]) -> tuple[Task, list[Item]]:
    """The task as it can be scored, and its items with their shots, up to the limit. Raises UserError."""
    made = ready(task, settings.execute)
    made = with_shots(made, settings.shots, settings.seed)
    items = limited(check_items(task, made.items()), settings.limit, settings.seed)
    if made.kind != task.kind and not all(item.choices for item in items):
        raise UserError(
            f"tasks={task.name}: runs programs that the model writes. Give execute=true to allow it"
        )
    if made.kind != task.kind:
        log(
            f"{task.name}: no program of the model is run without execute=true; scored are the bits per byte "
            "of the right ones"
        )
    return made, items


def evaluations_folder(path: Path, step: int, weights_hash: str) -> Path:
    """Where the evaluations of a model are kept: RUN/evaluations/STEP; for a folder of another program a
    folder in the cache, by its weights."""
    if (path / "config.yaml").is_file():
        return path / "evaluations" / str(step)
    return DataConfig().cache_path() / "evaluations" / weights_hash[:16]


def samples_of_result(path: Path, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The samples that a result of `evaluate_tasks` without out= was computed from. path: of the model.
    Raises UserError where they are gone."""
    file = evaluations_folder(path, result["step"], result["weights_hash"]) / result["samples"]
    samples = read_samples(file)
    if len(samples) != result["n"]:
        raise UserError(
            f"{file}: has {len(samples)} samples, and its result {result['n']}. Remove both, and evaluate "
            "again"
        )
    return samples


def task_run(
    task: Task, items: Sequence[Item], key: ModelKey, settings: TaskSettings, folder: Path
) -> TaskRun:
    """A task with the names of its files, and its result if it is there."""
    found = task_hash(task, items)
    drawn = (settings.samples, settings.temperature, settings.seed) if task.kind == "code" else ()
    name = f"{task.name.replace(':', '.').replace('/', '_')}.{key.digest(found, drawn)}.json"
    file = folder / name
    result = read_json(file)
    if result.get("scores_version") != scores_version():  # made of the same samples by other code
        result = {}
    return TaskRun(task, items, found, file, result)


def with_ids(run: TaskRun, tokenizer: Tokenizer, convention: Convention) -> TaskRun:
    """The run of a task with its items as token ids. Raises UserError for items that can't be scored."""
    encoded, skipped = encode_items(run.task, run.items, tokenizer, convention)
    return dataclasses.replace(run, encoded=encoded, skipped=skipped)


def first_ids(run: TaskRun, tokenizer: Tokenizer) -> str:
    """The tokens of a task's first item, for a line that shows what the model reads."""
    one = run.encoded[0]
    shown = one.choices[one.item.gold or 0] if one.choices else one.prompt
    assert shown is not None
    return shown_ids(tokenizer, shown)


def complete(
    run: TaskRun,
    evaluator: TaskEvaluator,
    key: ModelKey,
    settings: TaskSettings,
    overlaps: Sequence[Overlap] | None,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Scores what isn't scored of a task yet, writes its result and returns it.

    overlaps: what each item shares with the model's training corpus; None where that isn't known.
    """
    writes = jax.process_index() == 0
    wanted = {one.item.id: number for number, one in enumerate(run.encoded)}
    samples = {
        s["id"]: s for s in read_samples(run.samples_file, log if writes else None) if s["id"] in wanted
    }
    if samples:
        log(f"{run.task.name}: {len(samples)} of {len(wanted)} items are scored already")
    start, tokens, said = time.monotonic(), evaluator.tokens, time.monotonic()
    resumed = len(samples)
    for batch in evaluator.batches(run.task, run.encoded, frozenset(samples)):
        if writes:
            append_samples(run.samples_file, batch)
        samples |= {sample["id"]: sample for sample in batch}
        if time.monotonic() - said > PROGRESS_SECONDS and len(samples) < len(wanted):
            said = time.monotonic()
            log(f"{run.task.name}: {len(samples)} of {len(wanted)} items")
    ordered = [samples[one.item.id] for one in run.encoded]
    work = {
        "seconds": round(time.monotonic() - start, 3),
        "tokens": evaluator.tokens - tokens,
        "n_resumed": resumed,
    }
    result = result_of(run, ordered, key, settings, str(evaluator.opened.path)) | work
    result["contamination"] = contamination_of(run.task, ordered, overlaps)
    if writes:
        write_json(run.result_file, result)
    return result


def contamination_of(
    task: Task, samples: Sequence[Mapping[str, Any]], overlaps: Sequence[Overlap] | None
) -> dict[str, Any] | None:
    """How many items share text with the model's training corpus, and the score without them; None where that
    isn't known."""
    if overlaps is None:
        return None
    found = with_and_without(
        overlaps, lambda numbers: estimate([samples[i] for i in numbers], task.kind, task.metric)
    )
    return found.to_json()


def result_of(
    run: TaskRun, samples: Sequence[Mapping[str, Any]], key: ModelKey, settings: TaskSettings, path: str
) -> dict[str, Any]:
    """The result of a task: what was scored, of which model and how, and the numbers of `score_samples`."""
    task = run.task
    return {
        "task": task.name,
        "version": task.version,
        "task_hash": run.items_hash,
        "language": task.language,
        "kind": task.kind,
        "formulation": task.formulation,
        "metric": task.metric,
        "lower_is_better": task.lower_is_better,
        "chance": finite(task.chance_of([one.item for one in run.encoded])),
        **score_samples(samples, task.kind, task.metric, task.normalizations),
        "n_skipped": run.skipped,
        "shots": settings.shots,
        "limit": settings.limit,
        "seed": settings.seed,
        "path": path,
        "step": key.step,
        "weights_hash": key.weights_hash,
        "tokenizer_hash": key.tokenizer_hash,
        "dtype": key.dtype,
        "layout": key.layout,
        "platform": key.platform,
        "bos": key.convention,
        "code_version": key.code_version,
        "scores_version": scores_version(),
        "samples": run.samples_file.name,
    }
