"""Measures the data path alone: python tools/bench_data.py [SOURCE] prints tokens/s of `Corpus.batch`."""

from __future__ import annotations

import argparse
import time

from llm_jax.data import DataConfig, TokenizerConfig, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "source", nargs="?", default="stdlib", help="what data.source takes (default: stdlib)"
    )
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure")
    options = parser.parse_args()

    started = time.perf_counter()
    corpus = prepare(
        DataConfig(source=options.source),
        TokenizerConfig(vocab=options.vocab),
        sequence_length=options.sequence_length,
        batch_size=options.batch_size,
        seed=0,
        run_dir=None,
        log=print,
    )
    print(f"prepare: {time.perf_counter() - started:.2f} s, imports included")
    corpus.batch(0)  # maps the files and orders the first epoch
    started = time.perf_counter()
    steps = 0
    while (seconds := time.perf_counter() - started) < options.seconds:
        corpus.batch(steps)
        steps += 1
    tokens = steps * options.batch_size * options.sequence_length
    print(f"batch: {tokens / seconds:,.0f} tokens/s, {seconds / steps * 1e6:.0f} us a batch, one thread")


if __name__ == "__main__":
    main()
