"""Records of files (objects of JSONL, rows of Parquet and tables) as items, by the names of their fields.

    pair      sentence_good and sentence_bad, or good and bad
    choice    choices, endings or options: a list of texts, {"text": [...], "label": [...]}, or a table of
              letters; or fields A, B, ... (MMLU); gold, label, answer, answerKey or expected_index: a label,
              the choice itself, or an index; normalization, the same of all: the task's metric
    code      prompt, and test (with entry_point, as HumanEval has it) or tests (a program)
    generate  question or prompt, and answer, target, completion or ideal: a text, or a list of
              all right ones
    cloze     text: its last word must be the most likely one; or context and completion
    gold      text: its bits per byte; or context and completion

A question becomes "Question: ...\\nAnswer:"; context, ctx, query and prompt are read as they are. A space
comes before a choice that begins without white space, unless its context is empty or ends in white space.
"""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Mapping
from typing import Any

from llm_jax.core.errors import UserError, one_of
from llm_jax.evaluate.tasks.task import NORMALIZATIONS, Item, Kind

PAIRS = (("sentence_good", "sentence_bad"), ("good", "bad"))
CHOICES = ("choices", "endings", "options")
GOLD = ("gold", "label", "answer", "answerKey", "answer_key", "expected_index")
CONTEXTS = ("context", "ctx", "query", "prompt", "input", "activity_label")
ANSWERS = ("answer", "target", "completion", "ideal", "output")
IDS = ("id", "ind", "pairID", "task_id", "qid")
SOURCES = ("source", "source_id", "passage_id", "document")
GROUPS = ("group", "subject", "category", "UID", "task")

MOST_SHOWN = 40
"""Characters of a field in an error line."""

Record = Mapping[str, Any]


def kind_of(record: Record) -> Kind:
    """The kind of task that a record is of, by its fields. Raises UserError where it is of none."""
    if any(good in record and bad in record for good, bad in PAIRS):
        return "pair"
    if any(name in record for name in CHOICES) or len(letters_of(record)) > 1:
        return "choice"
    if "prompt" in record and ("tests" in record or "test" in record):
        return "code"
    if has_context(record) and any(name in record for name in ANSWERS):
        return "generate"
    if isinstance(record.get("text"), str):
        return "gold"
    names = ", ".join(map(str, record)) or "none"
    raise UserError(
        f"fields {names}: of no task; must have choices and gold, sentence_good and sentence_bad, "
        "question and answer, prompt and tests, or text"
    )


def metric_of(record: Record) -> str:
    """The metric that a record of choice asks for; empty for the kind's. Raises UserError."""
    found = record.get("normalization") or ""
    if found and found not in NORMALIZATIONS:
        raise UserError(f"normalization: is {found!r}; {one_of(str(found), NORMALIZATIONS)}")
    return found


def item_of(record: Record, kind: Kind, number: int) -> Item:
    """The item of a record, the `number`-th of its file. Raises UserError, naming the field, for a record
    that isn't of this kind."""
    made = {
        "pair": pair_item, "choice": choice_item, "code": code_item, "generate": generate_item,
        "cloze": cloze_item, "gold": gold_item,
    }[kind](record)  # fmt: skip
    return Item(
        id=str(first(record, IDS, number)),
        source=str(first(record, SOURCES, "")),
        group=str(first(record, GROUPS, "")),
        **made,
    )


def pair_item(record: Record) -> dict[str, Any]:
    """The fields of an item of pair."""
    good, bad = next((pair for pair in PAIRS if pair[0] in record), PAIRS[0])
    return {"choices": (text_field(record, good), text_field(record, bad)), "gold": 0}


def choice_item(record: Record) -> dict[str, Any]:
    """The fields of an item of choice."""
    found = first(record, CHOICES)
    name = next((name for name in CHOICES if name in record), "")
    if not name and not letters_of(record):
        raise UserError(f"has no choices; must be a list in one of {', '.join(CHOICES)}")
    labels, texts = labelled((letters_of(record) or None) if found is None else found, name or "A, B, ...")
    context = context_of(record)
    gold = first(record, GOLD)
    if gold is None:
        raise UserError(f"has no right answer; must be in one of {', '.join(GOLD)}")
    return {
        "context": context,
        "choices": tuple(joined(context, text) for text in texts),
        "gold": index_of(gold, labels, texts),
        "unconditional": str(first(record, ("unconditional",), "Answer:" if "question" in record else "")),
    }


def letters_of(record: Record) -> dict[str, Any]:
    """The choices of a record that has a field for each: A, B and so on."""
    has = itertools.takewhile(lambda letter: record.get(letter) is not None, string.ascii_uppercase)
    return {letter: record[letter] for letter in has}


def labelled(found: Any, name: str) -> tuple[list[str], list[str]]:
    """(labels, texts) of a record's choices."""
    if isinstance(found, Mapping) and "text" in found:
        labels, texts = found.get("label"), found["text"]
    elif isinstance(found, Mapping):
        labels, texts = list(found), list(found.values())
    else:
        labels, texts = None, found
    listed = isinstance(texts, list) and isinstance(labels, list | None)
    if not listed or not texts or not all(isinstance(text, str) for text in texts):
        shown = json.dumps(found, default=str, ensure_ascii=False)[:MOST_SHOWN]
        raise UserError(f"{name}: is {shown}; must be a list of texts, or fields A, B and so on")
    if labels is None:
        labels = list(string.ascii_uppercase[: len(texts)])
    elif len(labels) != len(texts):
        raise UserError(f"{name}: has {len(labels)} labels for {len(texts)} texts")
    return [str(label) for label in labels], texts


def index_of(gold: Any, labels: list[str], texts: list[str]) -> int:
    """The index of the right choice, of a label, the choice's text (as a text), or an index: the first of
    these that it can be. Raises UserError."""
    if isinstance(gold, list) and len(gold) == 1:
        gold = gold[0]
    number = isinstance(gold, int) and not isinstance(gold, bool)
    said = str(gold) if number else gold
    for known in (labels,) if number else (labels, texts, [text.strip() for text in texts]):
        if said in known:
            return known.index(said)
    indices = [str(index) for index in range(len(texts))]
    if isinstance(said, str) and said.strip() in indices:
        return indices.index(said.strip())
    raise UserError(
        f"right answer {repr(gold)[:MOST_SHOWN]}: must be an index from 0 to {len(texts) - 1}, one of "
        f"{', '.join(labels)}, or a choice"
    )


def code_item(record: Record) -> dict[str, Any]:
    """The fields of an item of code."""
    tests = first(record, ("tests", "test"))
    if isinstance(tests, list):  # MBPP: assertions, one each
        tests = "\n".join(map(str, tests))
    if tests and (entry := record.get("entry_point")):  # HumanEval defines check(candidate)
        tests = f"{tests}\n\ncheck({entry})"
    right = first(record, ("canonical_solution", "completion", "code", "solution"))
    prompt = text_field(record, "prompt")
    known = {"choices": (str(right),), "gold": 0, "text": str(right)} if right else {}
    return {"context": prompt, "tests": f"\n{tests}\n" if tests else "", **known}


def generate_item(record: Record) -> dict[str, Any]:
    """The fields of an item of generate. A worked solution that ends in "#### 18" (GSM8K) has the answer
    18."""
    right = first(record, ANSWERS)
    if right is None:
        raise UserError(f"has no right answer; must be in one of {', '.join(ANSWERS)}")
    several = right if isinstance(right, list) else [right]
    answers = [shown_text(answer, "right answer") for answer in several if answer is not None]
    if not answers:
        raise UserError("has an empty list of right answers; must be a text, or a list of all right ones")
    context = context_of(record)
    return {
        "context": context,
        "choices": (joined(context, answers[0]),),
        "gold": 0,
        "text": answers[0].rpartition("####")[2].strip(),
        "accepted": tuple(answers[1:]),
    }


def cloze_item(record: Record) -> dict[str, Any]:
    """The fields of an item of cloze: a text without its last word, and that."""
    if "text" in record and not has_context(record):
        before, space, word = text_field(record, "text").rstrip().rpartition(" ")
        if not space:
            raise UserError("text: is one word; the last of several is to be predicted")
        return {"context": before, "choices": (f" {word}",), "gold": 0}
    return gold_item(record)


def gold_item(record: Record) -> dict[str, Any]:
    """The fields of an item of gold: a text, or a continuation of a context."""
    context = context_of(record) if has_context(record) else ""
    right = first(record, (*ANSWERS, "text"))
    if not isinstance(right, str):
        raise UserError(f"has no text to score; must be in one of {', '.join((*ANSWERS, 'text'))}")
    return {"context": context, "choices": (joined(context, right),), "gold": 0}


def has_context(record: Record) -> bool:
    """Whether a record has a question or a context."""
    return any(name in record for name in ("question", *CONTEXTS))


def context_of(record: Record) -> str:
    """What stands before a record's answer."""
    if "question" in record:
        before = first(record, ("context", "passage"), "")
        parts = [shown_text(before, "context")] if before else []
        return "\n".join([*parts, f"Question: {text_field(record, 'question')}\nAnswer:"])
    name = next((name for name in CONTEXTS if name in record), "")
    if not name:
        return ""
    found = record[name]
    if isinstance(found, list):  # turns of a conversation (openai/evals): read as one text
        if not all(isinstance(turn, Mapping) for turn in found):
            raise UserError(f'{name}: must be a text, or turns like {{"role": "user", "content": "..."}}')
        return "\n".join(text_field(turn, "content") for turn in found)
    return text_field(record, name)


def joined(context: str, text: str) -> str:
    """A continuation with the space that parts it from its context. Raises UserError for an empty one, of
    which only that space would be scored."""
    if not text:
        raise UserError("has an empty choice or answer; must be a text")
    bare = not context or context[-1:].isspace() or text[:1].isspace()
    return text if bare else f" {text}"


def text_field(record: Record, name: str) -> str:
    """A field that must be a text. Raises UserError."""
    value = record.get(name)
    if not isinstance(value, str):
        problem = "is missing" if value is None else f"is {json.dumps(value, default=str)[:MOST_SHOWN]}"
        raise UserError(f"{name}: {problem}; must be a text")
    return value


def shown_text(value: Any, name: str) -> str:
    """A text, or a number as a text. Raises UserError for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        shown = json.dumps(value, default=str, ensure_ascii=False)[:MOST_SHOWN]
        raise UserError(f"{name}: is {shown}; must be a text or a number")
    return str(value)


def first(record: Record, names: tuple[str, ...], default: Any = None) -> Any:
    """The first field of some that a record has."""
    return next((record[name] for name in names if record.get(name) is not None), default)
