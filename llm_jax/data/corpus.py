"""The corpus of a run: the batch at step `s` is a pure function of (corpus, tokenizer, seed, `s`)."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.data import cache
from llm_jax.data.answer_rows import LabelledRows, PairRows, check_labels
from llm_jax.data.config import DataConfig, TokenizerConfig
from llm_jax.data.documents_per_row import held_out_row_documents, largest_group_sum, training_row_documents
from llm_jax.data.encoder import Encoder
from llm_jax.data.mixture import interleaved
from llm_jax.data.packing import PackedRows
from llm_jax.data.rows import EndlessRows, RowKind
from llm_jax.data.sources import Source, resolve
from llm_jax.data.token_cache import (
    TokenStore,
    all_held_out_error,
    held_out_hash,
    held_out_mask,
    tokenize,
    why_few,
)
from llm_jax.data.token_numbers import TokenNumbers
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.train_tokenizer import tokenizer_for
from llm_jax.data.whole_rows import WholeRows

Batch = dict[str, np.ndarray]
ROWS: Mapping[RowKind, type[EndlessRows]] = {
    "cut": PackedRows,
    "whole": WholeRows,
    "pairs": PairRows,
    "labelled": LabelledRows,
}
BATCH_KEYS = ("tokens", "targets", "weights", "segments", "positions")


@dataclass(frozen=True)
class _MixturePart:
    """One source of a mixture: its share of the rows, its training rows and its held-out rows."""

    name: str
    share: float
    """Its part of all rows, 0 to 1."""
    train: EndlessRows
    held_out: EndlessRows


class Corpus:
    """Training batches by step, and the held-out set.

    With `to_train=False` only the held-out set is used, and all documents may be held out.

    A batch is tokens, targets, segments and positions (int32 [B, T]) and weights (float32 [B, T]). `targets`
    is the next token of the same document, 0 where there is none; `weights` is 1 where there is a target that
    is trained, else 0; `segments` numbers the documents of a row from 1, 0 is padding; `positions` count from
    0 in each document of a row.
    """

    def __init__(
        self,
        parts: list[tuple[str, float, TokenStore]],
        tokenizer: Tokenizer,
        *,
        fingerprint: str,
        held_out_fraction: float,
        sequence_length: int,
        batch_size: int,
        seed: int,
        to_train: bool = True,
        rows: RowKind = "cut",
        sources: Sequence[Source] = (),
        encoder: Encoder | None = None,
    ):
        self._stores, self._held_out_fraction, self._rows = parts, held_out_fraction, rows
        self.tokenizer, self.fingerprint = tokenizer, fingerprint
        self.sequence_length, self.batch_size = sequence_length, batch_size
        self.sources = tuple(sources)
        """Where its documents are from, in the order of `parts`; empty for one that was made of tokens."""
        self.encoder = encoder
        total = sum(weight for _, weight, _ in parts)
        # A document that one source holds out is held out everywhere, even if another source contains it too.
        held_out_H = np.concatenate(
            [store.hashes_N[held_out_mask(store.hashes_N, held_out_fraction)] for _, _, store in parts]
        )
        self._held_out_H = held_out_H
        self._parts = [
            _MixturePart(
                name,
                weight / total,
                *_split(name, store, held_out_H, held_out_fraction, sequence_length, seed, to_train, rows),
            )
            for name, weight, store in parts
        ]
        self.train_tokens = sum(int(part.train.lengths_N.sum()) for part in self._parts)
        self.held_out_tokens = sum(int(part.held_out.lengths_N.sum()) for part in self._parts)
        self.train_documents = sum(len(part.train.lengths_N) for part in self._parts)
        self.held_out_documents = sum(len(part.held_out.lengths_N) for part in self._parts)
        text_bytes = sum(int(store.bytes_N.sum()) for _, _, store in parts)
        self.bytes_per_token: float = text_bytes / (self.train_tokens + self.held_out_tokens)
        """UTF-8 bytes of text per token; BOS and EOS count as tokens."""

    def with_seed(self, seed: int) -> Corpus:
        """A corpus of these documents, with these held out, whose training rows come in the order of another
        seed.
        """
        return Corpus(
            self._stores,
            self.tokenizer,
            fingerprint=self.fingerprint,
            held_out_fraction=self._held_out_fraction,
            sequence_length=self.sequence_length,
            batch_size=self.batch_size,
            seed=seed,
            rows=self._rows,
            sources=self.sources,
            encoder=self.encoder,
        )

    def token_numbers(
        self, of: str, folder: Path, *, steps: int, held_out_rows: int | None
    ) -> list[TokenNumbers]:
        """Where in the cache `folder` a number for each token is, of every source and of its mismatched
        answers.

        of: identifies what the numbers are. steps, held_out_rows: how many training steps and held-out rows
        (None: all) a run sees; other rows need no numbers. `TokenNumbers.attach` adds them to the batches.
        """
        seen, _ = interleaved([part.share for part in self._parts], np.arange(steps * self.batch_size))
        left, found = math.inf if held_out_rows is None else held_out_rows, []
        for number, (part, (_, _, store)) in enumerate(zip(self._parts, self._stores, strict=True)):
            train, held_out = part.train, part.held_out
            assert isinstance(train, WholeRows)  # rows that cut documents have no numbers
            assert isinstance(held_out, WholeRows)
            order_N = train.row_order(0)[: int((seen == number).sum())]
            first = int(min(left, len(held_out.plan)))
            left -= first
            needed = [(train, int(i)) for i in order_N] + [(held_out, i) for i in range(first)]
            groups = [(store.fingerprint, len(store.tokens), needed)]
            for rows in (train, held_out):
                if isinstance(rows, LabelledRows):
                    own = rows.mismatched
                    content = hashlib.sha256(own.tokens.tobytes() + own.lengths_N.tobytes()).hexdigest()
                    theirs = [(own, index) for other, index in needed if other is rows]
                    groups.append((content, len(own.tokens), theirs))
            for tokens, size, places in groups:
                key = cache.fingerprint("token numbers", 2, tokens, of)
                found.append(TokenNumbers(folder / "token_numbers" / key[:32], size, places))
        return [numbers for numbers in found if numbers.needed]

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """The global batch at `step` (from 0), or only its `rows`, each array [len(rows), T]."""
        first = step * self.batch_size
        rows_N = first + np.array(range(self.batch_size) if rows is None else rows, np.int64)
        located = zip(*interleaved([part.share for part in self._parts], rows_N), strict=True)
        return _stack([self._parts[source].train[int(row)] for source, row in located])

    def held_out_batches(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Every held-out document once, in a fixed order; at most `limit` batches.

        Each source's last row is filled up with padding (segment 0, weight 0), and the last batch with rows
        of padding.
        """
        rows: list[dict[str, np.ndarray]] = []
        batches = 0
        for part in self._parts:
            for index in range(-(-part.held_out.epoch_tokens // self.sequence_length)):
                rows.append(part.held_out.row(index, epochs=1))
                if len(rows) == batch_size:
                    yield _stack(rows)
                    rows, batches = [], batches + 1
                    if batches == limit:
                        return
        if rows:
            empty = [self._parts[0].held_out.empty_row()] * (batch_size - len(rows))
            yield _stack(rows + empty)

    @functools.cached_property
    def _held_out(self) -> frozenset[int]:
        return frozenset(map(int, self._held_out_H))

    def is_held_out(self, raw: bytes) -> bool:
        """Whether a document with this text or record is held out."""
        return held_out_hash(raw, self.encoder) in self._held_out

    def held_out_texts(self) -> Iterator[tuple[Source, int, bytes]]:
        """Every held-out document: its source, its number in it, and its text or record, in a fixed order."""
        for source in self.sources:
            records = source.records()
            for i in range(len(records)):
                raw = source.text(records, i)
                if self.is_held_out(raw):
                    yield source, i, raw

    def left_out(self) -> list[tuple[str, int, str]]:
        """(why, how many, where the first one is) of examples that an encoder left out, by source."""
        return [
            (reason, count, source.where(first - 1))
            for source, (_, _, store) in zip(self.sources, self._stores, strict=True)
            for reason, (count, first) in store.left_out.items()
        ]

    def max_documents_per_row(self, *, steps: int, group: int, held_out_group: int) -> int:
        """The largest number of documents per row, averaged over one device's rows of a batch and rounded up.

        `group` is how many rows of a training batch (or microbatch) a device has, `held_out_group` how many
        of a held-out batch. The maximum is over all rows of the run and all held-out rows; padding counts as
        a document.
        """
        train, held_out = ([getattr(part, which) for part in self._parts] for which in ("train", "held_out"))
        counts = training_row_documents(
            train, [part.share for part in self._parts], steps * self.batch_size, group
        )
        most = largest_group_sum(counts, group)
        most_held_out = largest_group_sum(held_out_row_documents(held_out, held_out_group), held_out_group)
        return max(-(-most // group), -(-most_held_out // held_out_group))

    def rows_line(self) -> str:
        """A log line about the training rows of whole examples: their number, content and padding."""
        whole = [part.train for part in self._parts if isinstance(part.train, WholeRows)]
        rows, examples = sum(r.round_rows for r in whole), sum(len(r.example_sizes()) for r in whole)
        padding = 1 - sum(int(r.lengths_N.sum()) for r in whole) / (rows * self.sequence_length)
        name = {"pairs": "pairs", "labelled": "answers"}.get(self._rows, "examples")
        line = f"rows: {rows:,} an epoch, {examples / rows:.1f} {name} in each, {padding:.1%} padding"
        wanted = sum(int((r.values_N > 0).sum()) for r in whole if r.values_N is not None)
        counts = f"; {wanted:,} answers are wanted, {examples - wanted:,} not" if name == "answers" else ""
        return line + counts

    def epochs(self, step: int) -> dict[str, float]:
        """Source name -> how many epochs of its training documents have been seen at the end of `step`."""
        tokens = (step + 1) * self.batch_size * self.sequence_length
        return {part.name: tokens * part.share / part.train.epoch_tokens for part in self._parts}

    def unique_tokens(self, steps: int) -> int:
        """The number of distinct training tokens seen in `steps` steps: a repeated source counts each of its
        tokens once.
        """
        seen = self.epochs(steps - 1)
        return round(sum(min(seen[part.name], 1.0) * int(part.train.lengths_N.sum()) for part in self._parts))

    def epoch(self, step: int) -> float:
        """The epochs seen at the end of `step` of the source that is repeated most."""
        return max(self.epochs(step).values())


def batch_sha(batch: Batch) -> str:
    """sha256 hex of a global batch: the names, dtypes, shapes and bytes of its arrays, in their order."""
    digest = hashlib.sha256()
    for key, value in batch.items():
        array = np.ascontiguousarray(value)
        digest.update(f"{key} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    run_dir: Path | None,
    log: Callable[[str], None],
    to_train: bool = True,
    encoder: Encoder | None = None,
    rows: RowKind = "cut",
) -> Corpus:
    """The corpus that a configuration describes; whatever the cache lacks is built first.

    Where several processes share the cache, one of them calls this first; the others then find everything
    built. The tokenizer is copied to `run_dir/tokenizer/`. `to_train`: see `Corpus`. `encoder`: how documents
    become tokens; None: BOS + text + EOS. `rows`: "cut" packs documents end to end and cuts them at the ends
    of rows, "whole" packs whole ones. Raises UserError for anything that the user can mend.
    """
    data.check()
    tokenizer.check()
    folder = data.cache_path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.cache_dir={folder}: this folder cannot be created: {error.strerror}. Give one that you "
            "can write to"
        ) from error
    with cache.writable(folder):
        return _prepare(
            data,
            tokenizer,
            folder,
            sequence_length=sequence_length,
            batch_size=batch_size,
            seed=seed,
            run_dir=run_dir,
            log=log,
            to_train=to_train,
            encoder=encoder,
            rows=rows,
        )


def _prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    folder: Path,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    run_dir: Path | None,
    log: Callable[[str], None],
    to_train: bool,
    encoder: Encoder | None,
    rows: RowKind,
) -> Corpus:
    sources: list[tuple[Source, float]] = []
    for name, weight in data.sources().items():
        source = resolve(name, data, log)
        if twin := next(
            (other.name for other, _ in sources if other.fingerprint == source.fingerprint), None
        ):
            raise UserError(
                f"data.mixture: '{twin}' and '{name}' are the same documents; give one of them, with the "
                "sum of the weights"
            )
        sources.append((source, weight))
        documents, size = source.size()
        log(f"corpus {name}: {documents:,} documents, {size / 1e6:,.1f} MB")
    trained = tokenizer_for(sources, tokenizer, data.held_out_fraction, folder, log)
    if run_dir is not None:
        trained.save(Path(run_dir) / "tokenizer")
    parts, all_cached = [], True
    for source, weight in sources:
        store, cached = tokenize(source, trained, folder, data.workers, encoder)
        all_cached &= cached
        refuse_left_out(source, store, encoder)
        parts.append((source.name, weight, store))
        for note in _notes(store, source, encoder):
            log(f"corpus {source.name}: {note}")
    identity: list[Any] = [
        [[s.name, s.fingerprint, w] for s, w in sources],
        trained.fingerprint,
        data.held_out_fraction,
    ]
    if encoder is not None:
        identity.append(["encoder", encoder.fingerprint])
    if rows != "cut":
        identity.append(["rows", rows])
    corpus = Corpus(
        parts,
        trained,
        fingerprint=cache.fingerprint("corpus", *identity),
        held_out_fraction=data.held_out_fraction,
        sequence_length=sequence_length,
        batch_size=batch_size,
        seed=seed,
        to_train=to_train,
        rows=rows,
        sources=[source for source, _ in sources],
        encoder=encoder,
    )
    log(
        f"tokens: {_count(corpus.train_tokens)} train + {_count(corpus.held_out_tokens)} held out in "
        f"{corpus.held_out_documents:,} documents, {corpus.bytes_per_token:.2f} "
        f"bytes/token{' (cached)' * all_cached}"
    )
    if rows != "cut":
        log(corpus.rows_line())
    return corpus


def records(store: TokenStore) -> int:
    """The number of documents that are not empty: one may make several examples."""
    return int((store.bytes_N > 0).sum())


def sizes_of(store: TokenStore) -> tuple[int, int, int]:
    """(documents, copies, groups) as `why_few` takes them."""
    return records(store), store.copies, len(np.unique(store.hashes_N))


def nothing_left_error(name: str, store: TokenStore) -> UserError:
    """The error for a source none of whose examples can be trained on."""
    reasons = "; ".join(f"{reason} ({count:,})" for reason, (count, _) in store.left_out.items())
    return UserError(
        f"data.source={name}: none of its {records(store):,} examples can be trained on: "
        f"{reasons or 'they are empty'}. Give other data, or mend the cause"
    )


def refuse_left_out(source: Source, store: TokenStore, encoder: Encoder | None) -> None:
    """Raises UserError where examples were left out for a reason that the encoder takes for a mistake in
    the data."""
    for reason, remedy in getattr(encoder, "refused", {}).items():
        if reason in store.left_out:
            count, first = store.left_out[reason]
            raise UserError(
                f"data.source={source.name}: {count:,} of {records(store):,} examples: {reason}; the first "
                f"is {source.where(first - 1)}. {remedy}"
            )


def _notes(store: TokenStore, source: Source, encoder: Encoder | None) -> list[str]:
    """Log lines about documents that have no text, are copies, or were changed, with their counts."""
    of_all = f"of {len(store.lengths_N):,} documents"
    skipped, empty = (int((sizes_N == 0).sum()) for sizes_N in (store.lengths_N, store.bytes_N))
    skipped -= sum(count for count, _ in store.left_out.values())
    reason = getattr(encoder, "why_several", "")
    many = 100 * store.copies >= len(store.lengths_N)  # a few licences and the like are in every corpus
    notes = {
        f"{skipped:,} {of_all} were skipped by the objective's encoder": skipped,
        f"{empty:,} {of_all} are empty, BOS and EOS alone": empty and encoder is None,
        f"{store.copies:,} {of_all} are copies of others": many,
        f"{len(store.lengths_N):,} examples of {records(store):,} documents: {reason}": bool(reason)
        and len(store.lengths_N) > records(store),
        **{
            f"{count:,} of {records(store):,} examples are left out: {reason}; the first is "
            f"{source.where(first - 1)}": True
            for reason, (count, first) in store.left_out.items()
        },
        f"{store.invalid:,} documents are not valid UTF-8; the bad bytes became U+FFFD": store.invalid,
    }
    return [note for note, true in notes.items() if true]


def _count(tokens: int) -> str:
    return f"{tokens / 1e6:,.2f} M" if tokens >= 1e5 else f"{tokens:,}"


def _split(
    name: str,
    store: TokenStore,
    held_out_H: np.ndarray,
    fraction: float,
    length: int,
    seed: int,
    to_train: bool,
    kind: RowKind,
) -> tuple[EndlessRows, EndlessRows]:
    """The training rows and the held-out rows of one source; `held_out_H` are the hashes of held-out
    documents.
    """
    held_out_N = np.isin(store.hashes_N, held_out_H)
    if to_train and held_out_N.all():
        raise all_held_out_error(name, fraction, *sizes_of(store))

    def rows_of(mask_N: np.ndarray, seed: int | None) -> EndlessRows:
        chosen_N = np.flatnonzero(mask_N & (store.lengths_N > 0))  # an encoder may skip a document
        if kind != "cut" and (long_N := chosen_N[store.lengths_N[chosen_N] > length]).size:
            raise UserError(
                f"train.sequence_length={length}: document {long_N[0]} of {name} has "
                f"{int(store.lengths_N[long_N[0]]):,} tokens ({long_N.size:,} documents are too long), "
                "and whole documents aren't cut. Use longer sequences, or leave out long documents"
            )
        return ROWS[kind](
            store.tokens,
            store.starts_N[chosen_N],
            store.lengths_N[chosen_N],
            length=length,
            seed=seed,
            weights=store.weights,
            values_N=None if store.values_N is None else store.values_N[chosen_N],
        )

    if to_train and not (store.lengths_N > 0).any():
        raise nothing_left_error(name, store)
    if to_train and kind == "labelled" and store.values_N is not None:
        check_labels(store.values_N[~held_out_N & (store.lengths_N > 0)], name)
    rows = rows_of(~held_out_N, seed)
    if to_train and (rows.epoch_tokens < length or not len(rows.lengths_N)):
        sizes = sizes_of(store)
        more = f" ({sizes[0]:,} documents: {why})" if (why := why_few(*sizes)) else ""
        raise UserError(
            f"data.source={name}: {rows.epoch_tokens:,} tokens to train on, and one sequence needs "
            f"{length:,}; "
            f"give more text or a smaller train.sequence_length{more}"
        )
    return rows, rows_of(held_out_N, None)


def _stack(rows: list[dict[str, np.ndarray]]) -> Batch:
    more = [key for key in rows[0] if key not in BATCH_KEYS]
    return {key: np.stack([row[key] for row in rows]) for key in (*BATCH_KEYS, *more)}
