"""What an evaluation asks of a model: items, and the task that says how they are scored. Imports no JAX."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from llm_jax.core.errors import UserError, one_of

Kind = Literal["choice", "pair", "cloze", "gold", "generate", "code"]
"""How the items of a task are scored:

choice: the choice with the largest log-probability, in the task's normalization, is the answer.
pair: two texts that differ in little, and the right one must be the more probable (raw log-probability).
cloze: every token of the gold continuation must be the most likely one.
gold: no answer is chosen; the score is the bits per byte of the gold continuation.
generate: the model writes an answer, greedily, and the task compares it with the reference.
code: the model writes programs, which are run with the item's tests (pass@k).
"""

Normalization = Literal["raw", "per_token", "per_character", "per_byte", "pmi"]
"""What a choice's log-probability is divided by before choices are compared: nothing, or its tokens,
characters or UTF-8 bytes; pmi: its log-probability after `Item.unconditional` is subtracted instead
(pointwise mutual information; Holtzman et al. 2021)."""

NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)

DEFAULT_METRIC: Mapping[Kind, str] = {
    "choice": "per_character", "pair": "raw", "cloze": "greedy", "gold": "bits_per_byte",
    "generate": "exact", "code": "pass@1",
}  # fmt: skip
"""The primary metric of a task that names none."""


@dataclass(frozen=True)
class Item:
    """One question of a task. Texts are as the model reads them: a continuation begins with its own space."""

    id: str
    """Unique in its task, and the same in every version of the data."""
    context: str = ""
    """What stands before every choice; "" begins a document. Shots are in it."""
    choices: tuple[str, ...] = ()
    """Continuations of the context. Of pair: two whole texts. Of cloze and gold: the one right text. Of
    generate and code: none, or a right text, whose bits per byte are then scored too."""
    gold: int | None = None
    """Index of the right choice; None where it isn't known or there is none."""
    source: str = ""
    """The passage or template that several items share: they are one cluster in the standard error. Empty:
    the item stands alone."""
    unconditional: str = ""
    """The context that says nothing about the question ("Answer:"), for the normalization pmi. Empty: the
    task has no pmi."""
    text: str = ""
    """The reference answer of generate and code, for its comparison and for reading."""
    contexts: tuple[str, ...] = ()
    """A context for each choice, where it is the context that varies and the continuation that stays
    (WinoGrande); `context` is then empty."""
    group: str = ""
    """The part of the task that the item belongs to: a subject, a phenomenon, a number of digits. Scores are
    given for each group too."""
    tests: str = ""
    """Of code: the program that follows the model's text, and fails unless that is right."""
    accepted: tuple[str, ...] = ()
    """Of generate: all answers that are right, where there are several."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else the source says about the item (difficulty, distance), in JSON's types; not scored."""

    def continuations(self) -> list[tuple[str, str]]:
        """(context, continuation) of every choice."""
        contexts = self.contexts or (self.context,) * len(self.choices)
        return list(zip(contexts, self.choices, strict=True))


@dataclass(frozen=True, kw_only=True)
class Task:
    """Items of one kind and how they are scored. `tasks=NAME` on the command line."""

    name: str
    """As on the command line and in results: arc_easy, german_case."""
    language: str
    """en, de, ...; code for programs; empty for what has none (numbers)."""
    kind: Kind
    items: Callable[[], Iterable[Item]]
    """Reads or makes all items, in an order that is always the same. Raises UserError where a file or package
    is missing: its line says what to install or give."""
    version: int = 1
    """Raised whenever the same name means other items or another way of scoring."""
    metric: str = ""
    """The primary metric. choice and pair: a normalization; empty: that of the kind (`DEFAULT_METRIC`)."""
    formulation: str = ""
    """cf: the choices are continuations (completion form); mcf: their letters are, and the choices are in the
    context; empty: the kind's name."""
    chance: float | None = None
    """The expected score of a guess, 0 to 1. None: the mean of 1 / choices; 0 where nothing is chosen."""
    groups: tuple[str, ...] = ()
    """Names that stand for several tasks on the command line (core, german, english, numbers, code)."""
    about: str = ""
    """A sentence about what is asked, where the items are from, and under which licence."""
    available: Callable[[], object] | None = None
    """Raises UserError at once where the files that `items` reads are absent."""
    examples: Callable[[], Sequence[Item]] | None = None
    """Items that are not scored and serve as shots; None: the task takes none of this kind."""
    prepared: Mapping[int, Callable[[], Iterable[Item]]] = field(default_factory=dict)
    """Number of shots → the items with just these shots in their contexts, as the source has them."""
    separator: str = "\n\n"
    """Between shots."""
    normalizations: tuple[Normalization, ...] = ("raw", "per_token", "per_character", "per_byte")
    """Those that choices are compared in, all of which are in the result; pmi is added for items that have
    an unconditional context."""
    max_tokens: int = 256
    """Of generate and code: the longest text."""
    stop: tuple[str, ...] = ()
    """Of generate and code: the text ends before the first of these."""
    right: Callable[[Item, str], bool] | None = None
    """Of generate: whether a text answers the item; None: it equals `text` or one of `accepted`, without the
    spaces around it."""
    code: str = ""
    """Of a task that a user's file defines: a hash of the file, which holds the functions `right` and
    `program`. (Those of this package are in the version of its code.)"""
    program: Callable[[Item, str], str] | None = None
    """Of code: the program to run, of the item and the model's text; None: context, text and tests, one after
    the other."""

    def __post_init__(self) -> None:
        """Raises UserError for fields that can't be: tasks come from users' files too."""
        if self.kind not in DEFAULT_METRIC:
            raise UserError(f"task {self.name}: kind={self.kind}: {one_of(self.kind, DEFAULT_METRIC)}")
        if not self.metric:
            object.__setattr__(self, "metric", DEFAULT_METRIC[self.kind])
        if not self.formulation:
            object.__setattr__(self, "formulation", self.kind)
        for name in ("items", "available", "examples", "right", "program"):
            value = getattr(self, name)
            if not callable(value) and (name == "items" or value is not None):
                raise UserError(f"task {self.name}: {name} is a {type(value).__name__}; must be a function")
        for name in ("stop", "groups", "normalizations"):
            if not is_texts(value := getattr(self, name)):  # a text is a sequence of one-letter texts
                raise UserError(f"task {self.name}: {name}={value!r}: must be a tuple of texts")
        if not isinstance(self.name, str) or not self.name.strip():
            raise UserError(f"task {self.name!r}: name: must be a text that isn't empty")
        for value in self.normalizations:
            if value not in NORMALIZATIONS:
                problem = one_of(str(value), NORMALIZATIONS)
                raise UserError(f"task {self.name}: normalizations={value}: {problem}")
        if self.metric not in (valid := metrics_of_kind(self.kind)):
            raise UserError(f"task {self.name}: metric={self.metric}: {one_of(self.metric, valid)}")

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value of the primary metric is the better one."""
        return self.metric == "bits_per_byte"

    def chance_of(self, items: Sequence[Item]) -> float:
        """The expected score of a guess on these items."""
        if self.chance is not None:
            return self.chance
        if self.kind not in ("choice", "pair") or not items:
            return 0.0
        return sum(1 / len(item.choices) for item in items) / len(items)


def metrics_of_kind(kind: Kind) -> tuple[str, ...]:
    """The primary metrics that a task of a kind can have.

    >>> metrics_of_kind("cloze")
    ('greedy', 'bits_per_byte')
    """
    if kind in ("choice", "pair"):  # two texts have no context, so none that says nothing
        compared = [name for name in NORMALIZATIONS if kind == "choice" or name != "pmi"]
        return (*compared, "bits_per_byte")
    return tuple(dict.fromkeys([DEFAULT_METRIC[kind], "bits_per_byte"]))


def check_items(task: Task, items: Iterable[Item]) -> list[Item]:
    """The items as a list. Raises UserError for the first one that its task can't score, and for two of one
    id."""
    found, seen = list(items), set()
    if not found:
        raise UserError(f"tasks={task.name}: has no items")
    for number, item in enumerate(found, 1):
        if not isinstance(item, Item):
            raise UserError(
                f"tasks={task.name}: item number {number} is a {type(item).__name__}; must be an Item "
                "(llm_jax.evaluate.tasks.task.Item)"
            )
        if problem := problem_of(task, item) or (f"id {item.id!r} comes twice" if item.id in seen else ""):
            raise UserError(f"tasks={task.name}: item {item.id}: {problem}")
        seen.add(item.id)
    return found


def problem_of(task: Task, item: Item) -> str:
    """Why a task can't score an item; "" for an item that it can.

    >>> problem_of(Task(name="a", language="en", kind="pair", items=list), Item("1", choices=("a",), gold=0))
    'has 1 choice; pair needs 2'
    """
    if problem := type_problem(item):
        return problem
    least = {"choice": 2, "pair": 2, "cloze": 1, "gold": 1, "generate": 0, "code": 0}[task.kind]
    most = {"pair": 2}.get(task.kind, len(item.choices))
    count = len(item.choices)
    if not least <= count <= most:
        wanted = f"{least}" if least == most else f"at least {least}"
        return f"has {count} choice{'s' * (count != 1)}; {task.kind} needs {wanted}"
    if item.contexts and len(item.contexts) != count:
        return f"has {len(item.contexts)} contexts for {count} choices"
    if any(not choice for choice in item.choices):
        return f"choice {item.choices.index('')} is empty"
    if count and (item.gold is None or not 0 <= item.gold < count):
        return f"gold={item.gold}: must be a number from 0 to {count - 1}"
    if task.kind == "pair" and len(set(item.continuations())) < 2:
        return "its two texts are the same"
    if "pmi" in (task.metric, *task.normalizations) and not item.unconditional:
        return "has no unconditional context, which pmi needs"
    if task.metric == "bits_per_byte" and not count:
        return "has no choices, whose bits per byte could be scored"
    if task.kind == "generate" and not (item.text or item.accepted):
        return "has no reference answer (text)"
    if task.kind == "code" and not item.tests:
        return "has no tests"
    return ""


def is_texts(value: object) -> bool:
    """Whether a value is a tuple or list of texts."""
    return isinstance(value, tuple | list) and all(isinstance(text, str) for text in value)


def type_problem(item: Item) -> str:
    """Why the fields of an item aren't of their types, or are no text that can be written; "" where they
    are."""
    for name in TEXTS:
        if not isinstance(value := getattr(item, name), str):
            return f"{name}={value!r}: must be a text"
    for name in TUPLES:
        if not is_texts(value := getattr(item, name)):
            return f"{name}={value!r}: must be a tuple of texts"
    if item.gold is not None and (not isinstance(item.gold, int) or isinstance(item.gold, bool)):
        return f"gold={item.gold!r}: must be a number"
    for name in (*TEXTS, *TUPLES):
        try:
            "".join(getattr(item, name)).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.end][:1]
            return f"{name}: has {half!r}, half of a character (a surrogate without its other half)"
    return ""


TEXTS = ("id", "context", "source", "unconditional", "text", "group", "tests")
TUPLES = ("choices", "contexts", "accepted")
"""The fields of an item that are texts, and tuples of texts."""


def task_hash(task: Task, items: Iterable[Item]) -> str:
    """16 hex digits of sha256 over everything that the score of a task depends on but the model: the items in
    order, and how they are scored."""
    digest = hashlib.sha256()
    parts = (
        task.name, task.kind, task.version, task.metric, task.formulation, task.max_tokens, task.stop,
        task.chance, task.normalizations, task.code,
    )  # fmt: skip
    digest.update(json.dumps(parts).encode())
    for item in items:
        digest.update(json.dumps(vars(item), ensure_ascii=False, default=str).encode())
    return digest.hexdigest()[:16]
