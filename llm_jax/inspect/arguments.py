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


def sample_text(name: str, folder: Path) -> str:
    """The context of an item TASK#ITEM with the right answer. folder: the model, for tasks of its own
    held-out text. Raises UserError where there is no such task or item."""
    from llm_jax.evaluate.tasks.registry import TaskOptions, find_tasks  # reads tables of tasks

    names, _, item_id = name.partition("#")
    require(
        bool(names and item_id), "sample", name, "TASK#ITEM: a task, or a file of tasks, and an item's id"
    )
    tasks = find_tasks(names, TaskOptions(model=folder))
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
    """A run folder or a Hugging Face model folder."""
    text: str | None = argument(None, read=some_text)
    """The text, of at most 1,024 tokens."""
    file: Path | None = argument(None, shown="FILE")
    """Instead: a file with the text."""
    ids: tuple[int, ...] | None = argument(None, least=0)
    """Instead: the text's token ids."""
    sample: str = argument("", shown="TASK#ITEM", read=some_text)
    """Instead: an item of a task of python -m llm_jax.evaluate, by its name and id: its context, and the
    right answer. The page of a leaderboard has these words for every item."""
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
    """The folder for inspect.html (one file, readable without a network), figures/*.png and inspect.json;
    RUN_OR_FOLDER/inspect, if not given."""
    model: ModelArguments = part(ModelArguments)

    def check(self) -> None:
        """Raises UserError where not one text is given, or one of word and contexts."""
        given = [key for key in ("text", "file", "ids", "sample") if getattr(self, key) not in (None, "")]
        if not given:
            raise UserError("text=TEXT is missing (or file=PATH, ids=1,2,3, or sample=TASK#ITEM)")
        if len(given) > 1:
            raise UserError(f"{' and '.join(f'{key}=' for key in given)} are given. Give one of them")
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
            return sample_text(self.sample, self.folder), f"sample={self.sample}"
        if self.text is not None:
            return self.text, f"text={self.text[:40]}{'…' if len(self.text) > 40 else ''}"
        text = input_text("file", str(self.file))
        if not text:
            raise UserError(f"file={self.file}: is empty. Give a file with text")
        return text, f"file={self.file}"

    @property
    def path(self) -> str:
        """The model's folder, as a page shows it."""
        return str(self.folder)
