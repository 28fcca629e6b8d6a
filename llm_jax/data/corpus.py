"""The corpus that a run trains on: the batch at step `s` as a pure function of (corpus, tokenizer, seed, `s`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.data import cache
from llm_jax.data.config import DataConfig, TokenizerConfig
from llm_jax.data.documents_per_row import documents_in_held_out, documents_in_run, most_in_groups
from llm_jax.data.packing import PackedRows, empty_row
from llm_jax.data.sources import Source, resolve
from llm_jax.data.token_cache import TokenStore, held_out_mask, none_left, tokenize
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.train_tokenizer import tokenizer_for

Batch = dict[str, np.ndarray]
BATCH_KEYS = ("tokens", "targets", "weights", "segments", "positions")


@dataclass(frozen=True)
class _Part:
    """One source of a mixture."""

    name: str
    share: float
    """Of the rows, 0 to 1."""
    train: PackedRows
    held_out: PackedRows


class Corpus:
    """Training batches by step, and the held-out set; not `to_train`, only that: all documents may be held out then.

    A batch is tokens, targets, segments and positions (int32 [B, T]) and weights (float32 [B, T]). `targets` is
    the next token of the same document, 0 where there is none; `weights` is 1 where there is a target, else 0;
    `segments` numbers the documents of a row from 1, 0 is padding; `positions` count from 0 in each document of a row.
    """

    def __init__(self, parts: list[tuple[str, float, TokenStore]], tokenizer: Tokenizer, *, fingerprint: str,
                 held_out_fraction: float, sequence_length: int, batch_size: int, seed: int, to_train: bool = True):  # fmt: skip
        import grain

        self._stores, self._held_out_fraction = parts, held_out_fraction
        self.tokenizer, self.fingerprint = tokenizer, fingerprint
        self.sequence_length, self.batch_size = sequence_length, batch_size
        total = sum(weight for _, weight, _ in parts)
        # What one source holds out no other trains on, though it may have the same document.
        held_out_H = np.concatenate([store.hashes_N[held_out_mask(store.hashes_N, held_out_fraction)] for _, _, store in parts])
        self._parts = [
            _Part(name, weight / total, *_split(name, store, held_out_H, held_out_fraction, sequence_length, seed, to_train))
            for name, weight, store in parts
        ]
        self.train_tokens = sum(part.train.epoch_tokens for part in self._parts)
        self.held_out_tokens = sum(part.held_out.epoch_tokens for part in self._parts)
        self.train_documents = sum(len(part.train.lengths_N) for part in self._parts)
        self.held_out_documents = sum(len(part.held_out.lengths_N) for part in self._parts)
        text_bytes = sum(int(store.bytes_N.sum()) for _, _, store in parts)
        self.bytes_per_token: float = text_bytes / (self.train_tokens + self.held_out_tokens)
        """UTF-8 bytes of text a token, BOS and EOS counted."""
        datasets = [grain.MapDataset.source(part.train) for part in self._parts]
        self._rows = datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, [p.share for p in self._parts])

    def with_seed(self, seed: int) -> Corpus:
        """The same documents, the same ones held out, in another order."""
        return Corpus(
            self._stores, self.tokenizer, fingerprint=self.fingerprint, held_out_fraction=self._held_out_fraction,
            sequence_length=self.sequence_length, batch_size=self.batch_size, seed=seed,
        )  # fmt: skip

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """The global batch at `step` (from 0), or only its `rows`, each array [len(rows), T]."""
        first = step * self.batch_size
        return _stack([self._rows[first + i] for i in (range(self.batch_size) if rows is None else rows)])

    def held_out_batches(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Every held-out document once, in a fixed order; at most `limit` batches.

        The rows of a source end with padding, and so does the last batch (segment 0, weight 0).
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
            yield _stack(rows + [empty_row(self.sequence_length)] * (batch_size - len(rows)))

    def most_documents(self, *, steps: int, group: int, held_out_group: int) -> int:
        """The most documents a row, on average over the rows that one device has of a batch, rounded up.

        `group` is how many rows of a training batch (or microbatch) a device has, `held_out_group` how many of a held-out
        one. All rows of the run and all held-out ones are looked at; padding counts as a document.
        """
        train, held_out = ([getattr(part, which) for part in self._parts] for which in ("train", "held_out"))
        counts = documents_in_run(train, [part.share for part in self._parts], steps * self.batch_size, group)
        most = most_in_groups(counts, group)
        most_held_out = most_in_groups(documents_in_held_out(held_out, held_out_group), held_out_group)
        return max(-(-most // group), -(-most_held_out // held_out_group))

    def epochs(self, step: int) -> dict[str, float]:
        """Source -> how often its training documents have been seen at the end of `step`."""
        tokens = (step + 1) * self.batch_size * self.sequence_length
        return {part.name: tokens * part.share / part.train.epoch_tokens for part in self._parts}

    def unique_tokens(self, steps: int) -> int:
        """How many different tokens `steps` steps have seen: a source's training tokens at most, however often it is repeated."""
        seen = self.epochs(steps - 1)
        return round(sum(min(seen[part.name], 1.0) * part.train.epoch_tokens for part in self._parts))

    def epoch(self, step: int) -> float:
        """How often the source that is repeated most has been seen at the end of `step`."""
        return max(self.epochs(step).values())


def batch_sha(batch: Batch) -> str:
    """sha256 hex of a global batch: the shapes and bytes of its five arrays."""
    digest = hashlib.sha256()
    for key in BATCH_KEYS:
        array = np.ascontiguousarray(batch[key])
        digest.update(f"{key} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def prepare(data: DataConfig, tokenizer: TokenizerConfig, *, sequence_length: int, batch_size: int, seed: int,
            run_dir: Path | None, log: Callable[[str], None], to_train: bool = True) -> Corpus:  # fmt: skip
    """From configuration to a corpus, building whatever the cache does not have yet. Not `to_train`: see `Corpus`.

    Where several processes share the cache, one calls this first and the others after it: they find all of it.
    `run_dir/tokenizer/` gets a copy of the tokenizer. Raises UserError for anything the user can mend.
    """
    data.check()
    tokenizer.check()
    folder = data.cache_path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.cache_dir={folder}: cannot make this folder: {error.strerror}") from error
    with cache.writable(folder):
        return _prepare(
            data, tokenizer, folder, sequence_length=sequence_length, batch_size=batch_size, seed=seed, run_dir=run_dir, log=log, to_train=to_train
        )


def _prepare(data: DataConfig, tokenizer: TokenizerConfig, folder: Path, *, sequence_length: int, batch_size: int, seed: int,
             run_dir: Path | None, log: Callable[[str], None], to_train: bool) -> Corpus:  # fmt: skip
    sources: list[tuple[Source, float]] = []
    for name, weight in data.sources().items():
        source = resolve(name, data, log)
        if twin := next((other.name for other, _ in sources if other.fingerprint == source.fingerprint), None):
            raise UserError(f"data.mixture: '{twin}' and '{name}' are the same documents; give one of them, with the sum of the weights")
        sources.append((source, weight))
        documents, size = source.size()
        log(f"corpus {name}: {documents:,} documents, {size / 1e6:,.1f} MB")
    trained = tokenizer_for(sources, tokenizer, data.held_out_fraction, folder, log)
    if run_dir is not None:
        trained.save(Path(run_dir) / "tokenizer")
    parts, all_cached = [], True
    for source, weight in sources:
        store, cached = tokenize(source, trained, folder, data.workers)
        all_cached &= cached
        parts.append((source.name, weight, store))
        if store.invalid:
            log(f"corpus {source.name}: {store.invalid:,} documents are not valid UTF-8; the bad bytes became U+FFFD")
    identity = [[[s.name, s.fingerprint, w] for s, w in sources], trained.fingerprint, data.held_out_fraction]
    corpus = Corpus(
        parts, trained, fingerprint=cache.fingerprint("corpus", *identity), held_out_fraction=data.held_out_fraction,
        sequence_length=sequence_length, batch_size=batch_size, seed=seed, to_train=to_train,
    )  # fmt: skip
    log(
        f"tokens: {_count(corpus.train_tokens)} train + {_count(corpus.held_out_tokens)} held out in "
        f"{corpus.held_out_documents:,} documents, {corpus.bytes_per_token:.2f} bytes/token{' (cached)' * all_cached}"
    )
    return corpus


def _count(tokens: int) -> str:
    return f"{tokens / 1e6:,.2f} M" if tokens >= 1e5 else f"{tokens:,}"


def _split(
    name: str, store: TokenStore, held_out_H: np.ndarray, fraction: float, length: int, seed: int, to_train: bool
) -> tuple[PackedRows, PackedRows]:
    """The rows that are trained on, and those that are held out (any document whose hash is in `held_out_H`), of one source."""
    held_out_N = np.isin(store.hashes_N, held_out_H)
    if to_train and held_out_N.all():
        raise none_left(name, fraction, len(held_out_N))
    train_N = np.flatnonzero(~held_out_N)
    held_N = np.flatnonzero(held_out_N)
    rows = PackedRows(store.tokens, store.starts_N[train_N], store.lengths_N[train_N], length=length, seed=seed)
    if to_train and rows.epoch_tokens < length:
        raise UserError(
            f"data.source={name}: {rows.epoch_tokens:,} tokens to train on, and one sequence needs {length:,}; "
            f"give more text or a smaller train.sequence_length"
        )
    return rows, PackedRows(store.tokens, store.starts_N[held_N], store.lengths_N[held_N], length=length, seed=None)


def _stack(rows: list[dict[str, np.ndarray]]) -> Batch:
    return {key: np.stack([row[key] for row in rows]) for key in BATCH_KEYS}
