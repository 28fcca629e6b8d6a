"""Tasks of users' files: what their fields mean, and one line for each mistake in them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from llm_jax.core.errors import UserError
from llm_jax.evaluate.tasks.own_file import tasks_of_file
from llm_jax.evaluate.tasks.registry import all_tasks, find_tasks, groups_of
from llm_jax.evaluate.tasks.shots import limited, with_shots
from llm_jax.evaluate.tasks.task import Item, Task, check_items, task_hash


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


RECORDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a question with choices": (
        {"question": "Capital of Germany?", "choices": ["Bonn", "Berlin"], "answer": "Berlin"},
        {"context": "Question: Capital of Germany?\nAnswer:", "choices": (" Bonn", " Berlin"), "gold": 1},
    ),
    "HellaSwag's": (
        {"ctx": "A man sits.", "endings": ["He stands.", "It rains."], "label": "0", "ind": 7},
        {"id": "7", "context": "A man sits.", "choices": (" He stands.", " It rains."), "gold": 0},
    ),
    "ARC's": (
        {"question": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        {"choices": (" x", " y"), "gold": 1},
    ),
    "ARC's with labels that are numbers": (
        {"question": "Q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": 1},
        {"choices": (" x", " y"), "gold": 0},
    ),
    "MMLU's": (
        {"question": "Q", "A": "x", "B": "y", "C": "z", "D": "u", "answer": "C"},
        {"context": "Question: Q\nAnswer:", "choices": (" x", " y", " z", " u"), "gold": 2},
    ),
    "MMLU's with an index": ({"question": "Q", "A": "x", "B": "y", "C": None, "answer": 1}, {"choices": (" x", " y"), "gold": 1}),
    "MMLU's with the text": ({"question": "Q", "A": "x", "B": "y", "answer": "y"}, {"gold": 1}),
    "more choices than letters": ({"query": "Q", "choices": list("abcdefghijklmnopqrstuvwxyzäöü"), "gold": 27}, {"gold": 27}),
    "a table of letters": (
        {"prompt": "Q:\n", "options": {"A": "x", "B": "y"}, "gold": 1, "source": "p1"},
        {"context": "Q:\n", "choices": ("x", "y"), "gold": 1, "source": "p1"},
    ),
    "BLiMP's": (
        {"sentence_good": "It rains.", "sentence_bad": "It rain.", "UID": "agreement", "pairID": "3"},
        {"choices": ("It rains.", "It rain."), "gold": 0, "group": "agreement", "id": "3"},
    ),
    "GSM8K's": (
        {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"},
        {"text": "2", "choices": (" 1 + 1 = 2\n#### 2",)},
    ),
    "evals'": (
        {"input": [{"role": "system", "content": "Answer."}, {"role": "user", "content": "1+1"}], "ideal": ["2", "two"]},
        {"context": "Answer.\n1+1", "text": "2", "accepted": ("two",)},
    ),
    "HumanEval's": (
        {"task_id": "H/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "test": "def check(c): assert c() == 1", "entry_point": "f"},
        {"id": "H/0", "choices": ("    return 1\n",), "tests": "\ndef check(c): assert c() == 1\n\ncheck(f)\n"},
    ),
    "a text": ({"text": "Es regnet."}, {"context": "", "choices": ("Es regnet.",), "gold": 0}),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_items(name: str, tmp_path: Path):
    record, expected = RECORDS[name]
    (task,) = tasks_of_file(str(write_jsonl(tmp_path / "mine.jsonl", [record])))
    (item,) = check_items(task, task.items())
    assert {key: getattr(item, key) for key in expected} == expected


def test_a_kind_may_be_named(tmp_path: Path):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"text": "Es regnet heute wieder."}])
    (task,) = tasks_of_file(f"{path}:cloze")
    (item,) = task.items()
    assert (task.name, task.kind, task.metric) == ("mine", "cloze", "greedy")
    assert (item.context, item.choices) == ("Es regnet heute", (" wieder.",))


def test_compressed_files_tables_and_parquet(tmp_path: Path):
    lines = json.dumps({"good": "ä", "bad": "b"}) + "\n"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "b.tsv").write_text("sentence_good\tsentence_bad\nä\tb\n")
    (tmp_path / "c.tsv").write_text("True\tä\nFalse\tb\n")
    pyarrow.parquet.write_table(pyarrow.table({"good": ["ä"], "bad": ["b"]}), tmp_path / "d.parquet")
    (tmp_path / "e.tsv").write_text("Wie viel ist 1 + 1?\t2\n")
    for name in ("a.jsonl.gz", "b.tsv", "c.tsv", "d.parquet"):
        (task,) = tasks_of_file(str(tmp_path / name))
        assert (task.name, task.kind) == (name[0], "pair")
        assert [item.choices for item in task.items()] == [("ä", "b")]
    (task,) = tasks_of_file(str(tmp_path / "e.tsv"))
    (item,) = task.items()
    assert (task.kind, item.context, item.text) == ("generate", "Question: Wie viel ist 1 + 1?\nAnswer:", "2")
    assert task.right is not None
    assert task.right(item, " Das sind 2.")


def test_a_python_file_defines_tasks(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from llm_jax.evaluate.tasks.task import Item, Task\n"
        "def items():\n    return [Item(str(n), f'{n} + 1 =', (f' {n + 1}', ' 0'), 0) for n in range(3)]\n"
        "TASKS = [Task(name='sums', language='', kind='choice', items=items)]\n"
    )
    (task,) = find_tasks(str(tmp_path / "mine.py"))
    assert [item.choices[0] for item in check_items(task, task.items())] == [" 1", " 2", " 3"]


def test_functions_of_a_python_file_return_what_they_must(tmp_path: Path):
    more = "def right(item, text): return {'a': True, 'b': 0.5}[text]"
    (tmp_path / "mine.py").write_text(task_code("kind='generate', right=right", more=more))
    (task,) = find_tasks(str(tmp_path / "mine.py"))
    assert task.right is not None
    assert task.right(Item("1"), "a") is True
    for text, problem in {
        "b": "item 1: right returned 0.5; must be True or False",
        "c": "mine.py:3: KeyError",
    }.items():
        with pytest.raises(UserError, match=problem):
            task.right(Item("1"), text)


def task_code(
    fields: str = "kind='choice'", items: str = "lambda: [ITEM]", item: str = "", more: str = ""
) -> str:
    """A .py file with a task of one item."""
    return (
        "from llm_jax.evaluate.tasks.task import Item, Task\n"
        f"ITEM = Item(**({{'id': 'a', 'context': 'b', 'choices': ('c', 'd'), 'gold': 0}} | dict({item})))\n"
        f"{more}\nT = Task(name='t', language='', items={items}, {fields})\n"
    )


DAMAGED = bytearray(gzip.compress(bytes(range(256)) * 4))
DAMAGED[12:40] = b"\xff" * 28

MISTAKES: dict[str, tuple[str | bytes | None, str]] = {
    "damaged.jsonl.gz": (bytes(DAMAGED), "can't be read ("),
    "half.jsonl": ('{"text": "a \\ud83d"}', "item 0: choices: has '\\ud83d', half of a character"),
    "nothing.jsonl": ('{"question": "a", "answer": []}', "line 1: has an empty list of right answers"),
    "norm.jsonl": ('{"question": "a", "choices": ["b", "c"], "gold": 0, "normalization": "row"}', "line 1: normalization: is 'row'"),
    "norms.jsonl": ('{"question": "a", "choices": ["b", "c"], "gold": 0}\n{"question": "a", "choices": ["b", "c"], "gold": 0, "normalization": "raw"}', "line 2: normalization: is raw, and missing before"),
    "long.jsonl": (json.dumps({"question": "a", "choices": ["b", "c"], "gold": "9" * 5000}), "must be an index from 0 to 1"),
    "text.tsv": ('question\tchoices\tanswer\na\t["b", "c"]\t0\n', "line 2: choices: is \"["),
    "null.jsonl": ('{"question": "a", "choices": null, "answer": 1}', "line 1: choices: is null; must be a list of texts"),
    "labels.jsonl": ('{"question": "a", "choices": {"text": ["b", "c"], "label": 3}, "answer": 1}', "line 1: choices: is {"),
    "texts.jsonl": ('{"question": "a", "choices": {"text": "bc", "label": "AB"}, "answer": 1}', "line 1: choices: is {"),
    "object.jsonl": ('{"question": "a", "answer": {"b": 1}}', "line 1: right answer: is {"),
    "passage.jsonl": ('{"context": ["a"], "question": "a", "answer": "b"}', "line 1: context: is ["),
    "none.py": (task_code(items="lambda: None"), "none.py: TypeError: 'NoneType' object is not iterable"),
    "gap.jsonl": ('{"question": "a", "choices": ["", "c"], "answer": 1}', "line 1: has an empty choice"),
    "nobody.jsonl": ('{"question": null, "answer": "b"}', "line 1: question: is missing"),
    "odd.tsv": ("True\ta\nFalse\tb\nTrue\tc\n", "line 3: is alone"),
    "same.jsonl": ('{"good": "a", "bad": "a"}', "item 0: its two texts are the same"),
    "letters.py": (task_code(item="choices='abcd'"), "item a: choices='abcd': must be a tuple of texts"),
    "golden.py": (task_code(item="gold='0'"), "item a: gold='0': must be a number"),
    "context.py": (task_code(item="context=None"), "item a: context=None: must be a text"),
    "dicts.py": (task_code(items="lambda: [{'id': 'a'}]"), "item number 1 is a dict; must be an Item"),
    "list.py": (task_code(items="[ITEM]"), "task t: items is a list; must be a function"),
    "later.py": (task_code(items="items", more="def items():\n    yield ITEM\n    raise KeyError('x')"), "later.py:5: KeyError: 'x'"),
    "exit.py": ("import sys\nsys.exit(0)", "exit.py:2: SystemExit: 0"),
    "f1.py": (task_code("kind='generate', metric='f1'"), "task t: metric=f1: must be one of exact, bits_per_byte"),
    "pmi.py": (task_code("kind='choice', metric='pmi'"), "item a: has no unconditional context"),
    "stop.py": (task_code("kind='generate', stop='ab'"), "task t: stop='ab': must be a tuple of texts"),
    "prepared.py": (task_code("kind='choice', prepared=[3]"), "AttributeError"),
    "rawx.py": (task_code("kind='choice', normalizations=('rawx',)"), "normalizations=rawx: must be one of raw"),
    "no.jsonl": (None, "no such file"),
    "empty.jsonl": ("", "is empty"),
    "array.jsonl": ('[{"text": "a"}]', "line 1 is no object"),
    "torn.jsonl": ('{"text": "a"', "line 1 is not JSON"),
    "number.jsonl": ("3", "line 1 is no object"),
    "fields.jsonl": ('{"a": 1}', "fields a: of no task; must have choices and gold"),
    "gold.jsonl": ('{"question": "a", "choices": ["b", "c"], "gold": 2}', "line 1: right answer 2: must be an index"),
    "none.jsonl": ('{"question": "a", "choices": ["b", "c"]}', "has no right answer"),
    "one.jsonl": ('{"question": "a", "choices": ["b"], "gold": 0}', "has 1 choice; choice needs at least 2"),
    "word.jsonl:cloze": ('{"text": "a"}', "is one word"),
    "twice.jsonl": ('{"good": "a", "bad": "b", "id": 1}\n{"good": "a", "bad": "b", "id": 1}', "id '1' comes twice"),
    "kind.jsonl:pair": ('{"text": "a"}', "sentence_good: is missing; must be a text"),
    "cells.tsv": ("question\tanswer\na\tb\tc\n", "line 2: has 3 cells, and there are 2 columns"),
    "no.parquet": ("text", "is no Parquet file"),
    "raises.py": ("1 / 0", "raises.py:1: ZeroDivisionError"),
    "syntax.py": ("def", "syntax.py:1: SyntaxError"),
    "nothing.py": ("x = 1", "defines no Task"),
    "bad.py": (
        "from llm_jax.evaluate.tasks.task import Task\nT = Task(name='a', language='', kind='chioce', items=list)",
        "did you mean 'choice'?",
    ),
    "arc_eesy": (None, "did you mean 'arc_easy'?"),
    "grman/x": (None, "there is no such file"),
    ",": (None, "is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content, problem = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name.partition(":")[0]).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        [check_items(task, task.items()) for task in find_tasks(name)]
    assert problem in str(caught.value)
    assert str(caught.value).startswith("tasks=")


def test_names_are_unique_and_groups_have_tasks():
    tasks = all_tasks()
    assert {"core", "code"} <= groups_of(list(tasks.values())).keys()
    assert [task.name for task in find_tasks("code,humaneval")].count("humaneval") == 1


def test_two_files_of_one_name_are_refused(tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "same.jsonl", [{"text": folder}])
    with pytest.raises(UserError, match="two tasks named same"):
        find_tasks(f"{tmp_path}/a/same.jsonl,{tmp_path}/b/same.jsonl")


ITEMS = [Item(str(n), f"{n} + 1 =", (f" {n + 1}", " 0"), 0) for n in range(20)]


def test_a_limit_takes_the_same_items_whatever_their_order():
    some = limited(ITEMS, 5)
    assert [int(item.id) for item in some] == sorted(int(item.id) for item in some)
    assert {item.id for item in limited(ITEMS[::-1], 5)} == {item.id for item in some}
    assert {item.id for item in limited(ITEMS, 4)} < {item.id for item in some}
    assert {item.id for item in limited(ITEMS, 5, seed=1)} != {item.id for item in some}


def test_shots_of_an_item_are_its_own_and_never_itself():
    task = Task(name="a", language="", kind="choice", items=lambda: ITEMS, examples=lambda: ITEMS)
    shot = {item.id: item.context for item in with_shots(task, 3).items()}
    alone = Task(name="a", language="", kind="choice", items=lambda: ITEMS[7:8], examples=lambda: ITEMS)
    assert next(iter(with_shots(alone, 3).items())).context == shot["7"]
    before = shot["7"].removesuffix("7 + 1 =")
    assert before.count("\n\n") == 3
    assert "7 + 1" not in before
    assert before.split("\n\n")[0] in {f"{n} + 1 = {n + 1}" for n in range(20)}
    wrong = Task(
        name="c", language="", kind="choice", items=lambda: ITEMS, examples=lambda: [Item("s", "a", "bc", 0)]
    )  # type: ignore[arg-type]
    with pytest.raises(UserError, match="item s: choices='bc': must be a tuple of texts"):
        list(with_shots(wrong, 1).items())
    with pytest.raises(UserError, match="has 19 examples"):
        list(with_shots(task, 20).items())
    with pytest.raises(UserError, match="shots=1: b has 0 shots"):
        with_shots(Task(name="b", language="", kind="choice", items=lambda: ITEMS), 1)


def test_the_hash_of_a_task_is_of_its_items():
    task = Task(name="a", language="", kind="choice", items=lambda: ITEMS)
    assert task_hash(task, ITEMS) == task_hash(task, list(ITEMS))
    assert task_hash(task, ITEMS) != task_hash(task, ITEMS[1:])
    assert task_hash(task, ITEMS) != task_hash(
        with_shots(Task(name="b", language="", kind="choice", items=lambda: ITEMS), 0), ITEMS
    )
