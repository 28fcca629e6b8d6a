"""Rows of answers to prompts: pairs of them, or single ones with labels. None is cut, and what is compared
shares a row.

An example takes at least `smallest_example(T)` positions of a row of T, so that a row has at most
`most_examples(T)`: the losses of all rows are then arrays of one shape.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.data.rows import Row, shuffled
from llm_jax.data.whole_rows import WholeRows

SMALLEST, MOST = 32, 256
PAIR_ARRAYS = ("continues", "margins")
MISMATCHED = "mismatched_"
"""What the names of the arrays of mismatched answers begin with."""
_MISMATCHES = 1 << 33
"""Added to a round's number, so that the order of mismatches is unrelated to those of documents and rows."""


def smallest_example(length: int) -> int:
    """The positions that an example takes of a row of `length` tokens at least.

    >>> smallest_example(512), smallest_example(16)
    (32, 16)
    """
    return min(length, max(SMALLEST, -(-length // MOST)))


def most_examples(length: int) -> int:
    """The most examples that a row of `length` tokens has.

    >>> most_examples(512), most_examples(16)
    (16, 1)
    """
    return length // smallest_example(length)


class PairRows(WholeRows):
    """Rows of whole pairs: documents 2 i and 2 i + 1 are the chosen and the rejected answer of pair i, each
    with its prompt.

    A row has the arrays of `EndlessRows`; `continues`, float32 [T], 1 where there is a target, trained or
    not; and `margins`, float32 [T], the margin of the pair that a token is of.
    """

    documents_per_example = 2

    def example_sizes(self) -> np.ndarray:
        """int64 [pairs]: the positions that each pair takes of a row."""
        return np.maximum(super().example_sizes(), smallest_example(self.length))

    def empty_row(self) -> Row:
        """A row of padding."""
        return {**super().empty_row(), **{name: np.zeros(self.length, np.float32) for name in PAIR_ARRAYS}}

    def row(self, index: int, *, epochs: int | None = None) -> Row:
        """Row `index` in the order of the plan, arrays [T]."""
        row = super().row(index, epochs=epochs)
        segments_T = row["segments"]
        row["continues"][:-1] = (segments_T[1:] == segments_T[:-1]) & (segments_T[1:] > 0)
        if self.values_N is not None and segments_T.any():
            chosen = 2 * np.array(self.plan[index % self.round_rows])
            margins = np.repeat(self.values_N[chosen], 2)
            row["margins"][:] = np.append(0, margins)[segments_T]
        return row


class PlacedDocuments(NamedTuple):
    """PlacedDocuments end to end, as rows are made of."""

    tokens: np.ndarray
    starts_N: np.ndarray
    lengths_N: np.ndarray
    weights: np.ndarray


class LabelledRows(WholeRows):
    """Rows of answers with labels, and beside each row another one with the same prompts and answers of other
    examples: mismatched ones.

    A row has the arrays of `EndlessRows`; `labels`, float32 [T], 1 for the tokens of a wanted answer; and
    those of the row of mismatched answers, `mismatched_tokens` etc., whose segment i has the prompt of
    segment i.
    """

    def __init__(self, tokens: np.ndarray, starts_N: np.ndarray, lengths_N: np.ndarray, **more: Any):
        """The arguments are those of `WholeRows`. values_N: 1 for an answer that is wanted, else 0."""
        documents = PlacedDocuments(tokens, starts_N, lengths_N, more["weights"])
        others = mismatched_documents(documents, more["length"], more["seed"])
        self.mismatched_lengths_N = others.lengths_N
        super().__init__(tokens, starts_N, lengths_N, **more)
        self.mismatched = WholeRows(
            *others[:3], length=self.length, seed=self.seed, weights=others.weights, plan=self.plan
        )
        """The rows of mismatched answers, by the same plan."""

    def example_sizes(self) -> np.ndarray:
        """int64 [N]: the positions that each example takes of its row, and of that of mismatched answers."""
        sizes_N = np.maximum(super().example_sizes(), self.mismatched_lengths_N)
        return np.maximum(sizes_N, smallest_example(self.length))

    def empty_row(self) -> Row:
        """A row of padding."""
        others = {MISMATCHED + name: value for name, value in self.mismatched.empty_row().items()}
        return {**super().empty_row(), "labels": np.zeros(self.length, np.float32), **others}

    def row(self, index: int, *, epochs: int | None = None) -> Row:
        """Row `index` in the order of the plan, arrays [T]."""
        row = super().row(index, epochs=epochs)
        if self.plan and (epochs is None or index < epochs * self.round_rows):
            assert self.values_N is not None
            wanted = self.values_N[self.plan[index % self.round_rows]] > 0
            row["labels"][:] = np.append(0, wanted)[row["segments"]]
        others = self.mismatched.row(index, epochs=epochs)
        return {**row, **{MISMATCHED + name: value for name, value in others.items()}}


def mismatched_documents(documents: PlacedDocuments, length: int, seed: int | None) -> PlacedDocuments:
    """The prompt of each document with the answer of another one: the next, in a shuffled order of all,
    that has another prompt and fits. Where there is none, the document itself with weights of 0.

    An answer begins with a document's first trained token.
    """
    tokens, starts_N, lengths_N, weights = documents
    count = len(lengths_N)
    begins_N = np.array(
        [np.argmax(weights[start : start + n] > 0) for start, n in zip(starts_N, lengths_N, strict=True)],
        np.int64,
    )
    prompts = [tokens[start : start + n].tobytes() for start, n in zip(starts_N, begins_N, strict=True)]
    order_N = shuffled(count, seed or 0, _MISMATCHES)
    other_N = np.full(count, -1)
    many = len(set(prompts)) > 1
    for at, document in enumerate(order_N.tolist()):
        for step in range(1, count if many else 1):
            other = int(order_N[(at + step) % count])
            fits = begins_N[document] + lengths_N[other] - begins_N[other] <= length
            if fits and prompts[other] != prompts[document]:
                other_N[document] = other
                break
    parts, part_weights = [], []
    for document in range(count):
        start, begin, other = int(starts_N[document]), int(begins_N[document]), int(other_N[document])
        if other < 0:
            parts.append(tokens[start : start + int(lengths_N[document])])
            part_weights.append(np.zeros(int(lengths_N[document]), np.uint8))
            continue
        answer = slice(int(starts_N[other] + begins_N[other]), int(starts_N[other] + lengths_N[other]))
        parts.append(np.concatenate([tokens[start : start + begin], tokens[answer]]))
        part_weights.append(np.concatenate([np.zeros(begin, np.uint8), weights[answer]]))
    new_lengths_N = np.array([len(part) for part in parts], np.int64)
    joined = [np.concatenate(some) if some else np.zeros(0, tokens.dtype) for some in (parts, part_weights)]
    return PlacedDocuments(joined[0], np.cumsum(new_lengths_N) - new_lengths_N, new_lengths_N, joined[1])


def check_labels(values_N: np.ndarray, name: str) -> None:
    """Raises UserError where the examples of a source that are trained on have one label only."""
    wanted = int((values_N > 0).sum())
    if wanted in (0, len(values_N)):
        label, other = ("true", "unwanted") if wanted else ("false", "wanted")
        raise UserError(
            f"data.source={name}: the label of all {len(values_N):,} examples is {label}, and there is "
            f"nothing to tell apart. Add {other} answers" + (", or use experiment=sft" if wanted else "")
        )
