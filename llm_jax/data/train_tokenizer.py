"""The tokenizer of a corpus: read from a file, or trained once on a sample of the documents and cached."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from llm_jax.data import cache
from llm_jax.data.added_control import missing, with_control
from llm_jax.data.config import TokenizerConfig
from llm_jax.data.load_tokenizer import load_tokenizer
from llm_jax.data.sentencepiece_tokenizer import TRAINER_VERSION, train
from llm_jax.data.sources import Source
from llm_jax.data.token_cache import all_held_out_error, document_hash, held_out_mask
from llm_jax.data.tokenizer import Tokenizer, remark_line


def tokenizer_for(
    sources: list[tuple[Source, float]],
    config: TokenizerConfig,
    held_out_fraction: float,
    folder: Path,
    log: Callable[[str], None],
) -> Tokenizer:
    """The tokenizer that `config` describes; `sources` share the sample that it is trained on by their
    weights.

    Raises UserError for a file that is no tokenizer, and for a vocabulary too large for the text.
    """
    if config.file:
        loaded = load_tokenizer(config.file)
        log(f"tokenizer: {config.file}, {loaded.vocab_size:,} tokens{remark_line(loaded.remarks)}")
        return with_control(loaded, config.control, folder, log)
    settings = [TRAINER_VERSION, config.kind, config.vocab, config.sample_bytes, held_out_fraction]
    key = cache.fingerprint(
        "tokenizer", settings, [[source.fingerprint, weight] for source, weight in sources]
    )
    target = folder / "tokenizers" / key[:32]
    total = sum(weight for _, weight in sources)

    def texts() -> Iterator[str]:
        for source, weight in sources:
            yield from sample(source, math.ceil(config.sample_bytes * weight / total), held_out_fraction)

    started = time.monotonic()
    trained_now = cache.build_once(target, lambda temporary: train(texts(), config).save(temporary))
    how = f"trained in {time.monotonic() - started:.0f} s" if trained_now else "cached"
    log(f"tokenizer: {config.kind}, {config.vocab:,} tokens ({how})")
    return with_control(load_tokenizer(target), config.control, folder, log)


def vocabulary_size(config: TokenizerConfig) -> int:
    """The vocabulary size of the tokenizer that `config` describes, known before it is trained: training
    gives it or raises.
    """
    if not config.file:
        return config.vocab + len(config.control)
    loaded = load_tokenizer(config.file)
    return loaded.vocab_size + len(missing(loaded, config.control))


def sample(source: Source, limit: int, held_out_fraction: float) -> list[str]:
    """At most `limit` bytes of training documents spread over a source, always the same ones.

    Of a document longer than an eighth of `limit` only the beginning is used. Held-out documents are
    excluded.
    """
    records = source.records()
    texts: list[str] = []
    hashes: list[int] = []
    room = limit
    for i in _spread(len(records)):
        if room <= 0:
            break
        raw = source.text(records, i)
        start = raw[: min(room, max(limit // 8, 1))]
        room -= len(start)
        # Drops a character that is cut in two, and bytes that are not UTF-8.
        texts.append(start.decode("utf-8", "ignore"))
        hashes.append(document_hash(raw))
    held_out_N = held_out_mask(np.array(hashes, np.uint64), held_out_fraction)
    if held_out_N.all() and len(texts) == len(records):
        different = len({*hashes})
        raise all_held_out_error(
            source.name, held_out_fraction, len(texts), len(texts) - different, different
        )
    return [text for text, held_out in zip(texts, held_out_N, strict=True) if not held_out]


def _spread(count: int) -> Iterator[int]:
    """A permutation of `range(count)` whose every prefix is evenly spread (steps of the golden ratio)."""
    step = max(round(count * 0.618), 1)
    while math.gcd(step, count) != 1:
        step += 1
    return (k * step % count for k in range(count))
