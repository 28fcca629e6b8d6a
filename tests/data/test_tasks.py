"""Generated tasks have the answers that they should, wrong answers are wrong, and nothing that is held out of one set is
trained in another."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from llm_jax.core.errors import UserError
from llm_jax.data import WHOLE_RECORD, DataConfig
from llm_jax.data.generated import generated_documents
from llm_jax.data.sources import resolve
from llm_jax.data.stdlib_questions import questions_about
from llm_jax.data.tasks import Draws, GeneratedTask, is_right, tasks, value_of, wrong_answer
from llm_jax.data.verify import expected_answer, verdict

SOME = list(itertools.islice(tasks(0, 12_000, "single"), 2_000))


def answer_of(task: GeneratedTask) -> str:
    """The answer, computed another way."""
    what, _, given = task.prompt.partition(": ")
    if what == "Python":
        return str(eval(given, {"__builtins__": {}}, {"max": max, "min": min, "len": len}))
    words = given.split()
    if what == "Reverse":
        return " ".join(reversed(words))
    if what == "Sort":
        return " ".join(sorted(words, key=int))
    found = re.fullmatch(r"Count (\d)", what)
    assert found
    return str(sum(word == found[1] for word in words))


def test_every_task_has_its_right_answer_and_comes_once():
    assert {task.kind for task in SOME} == {"reverse", "sort", "count", "python"}
    for task in SOME:
        assert task.answer == answer_of(task), task
    assert len({task.prompt for task in SOME}) == len(SOME)


def test_they_are_the_same_on_every_machine():
    assert [task.prompt for task in SOME[:3]] == ["Sort: 4 6", "Sort: 5 8", "Count 2: 3 1 3 2"]
    assert SOME[:50] == list(tasks(0, 50, "single"))
    assert SOME[:50] != list(tasks(1, 50, "single"))


def test_wrong_answers_are_wrong_and_one_for_each_task():
    for task in SOME:
        wrong = wrong_answer(task, Draws(task.prompt))
        assert wrong
        assert not is_right(task.answer, wrong)
        assert wrong == wrong_answer(task, Draws(task.prompt))


def test_no_prompt_of_the_pairs_is_among_the_tasks():
    single, pairs = (
        [json.loads(raw) for raw in generated_documents(name)] for name in ("tasks", "task_pairs")
    )
    assert not {one["prompt"] for one in single} & {one["prompt"] for one in pairs}
    assert all(verdict(pair, pair["chosen"]) and verdict(pair, pair["rejected"]) is False for pair in pairs)
    assert sum(one.get("verify") is None for one in single) == pytest.approx(1000, abs=1)  # questions


def test_expressions_are_computed_and_nothing_else():
    assert value_of("max([3, 4]) + len([1]) > 2") is True
    for text in ("__import__('os')", "(1).real", "[1 for _ in 'a']", "max(a)", "2 ** 9", "len(x=1)"):
        with pytest.raises(ValueError, match="is none of"):
            value_of(text)


def test_a_record_says_how_its_answers_are_verified():
    task = {"prompt": "a", "completion": "b", "verify": "exact"}
    assert verdict(task, " b\n") is True
    assert verdict(task, "b b") is False
    assert verdict({"prompt": "a", "completion": "b"}, "b") is None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert expected_answer({"messages": turns}) == "b"
    with pytest.raises(UserError, match="verify=exactly: must be one of exact"):
        verdict({**task, "verify": "exactly"}, "b")


def test_questions_are_made_of_signatures_and_docstrings():
    source = 'def f(a, *, b=1):\n    """Adds.\n\n    More."""\n\n\ndef _g(): "no"\n\n\nclass C:\n    "Holds. Things"\n'
    assert list(questions_about("m", source)) == [
        ("What does m.f do?", "Adds."),
        ("Signature of m.f?", "f(a, *, b=1)"),
        ("What does m.C do?", "Holds."),
    ]
    assert not list(questions_about("m", "print 1"))


def test_the_built_in_records_are_for_objectives_that_read_records(tmp_path):
    with pytest.raises(UserError, match=r"data.source=tasks: holds conversations"):
        resolve("tasks", DataConfig(cache_dir=str(tmp_path)), print)
    data = DataConfig(cache_dir=str(tmp_path), text_key=WHOLE_RECORD)
    source = resolve("task_pairs", data, print)
    records = source.records()
    assert len(records) == 4000
    assert set(json.loads(source.text(records, 7))) == {"prompt", "chosen", "rejected", "verify", "task"}
    assert resolve("task_pairs", data, pytest.fail).fingerprint == source.fingerprint
