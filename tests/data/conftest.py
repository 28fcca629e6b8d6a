"""Small corpora for the data tests, and the real texts where they are at hand."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_jax.data import Corpus, DataConfig, TokenizerConfig, prepare

ROOT = Path(__file__).parents[2]
WORDS = [
    "the",
    "model",
    "reads\ta",
    "row",
    "of",
    "tokens",
    "and",
    "counts",
    "42",
    "naïve",
    "日本",
    "ends.\n",
    "def f(x):\n    return x\n",
]


@pytest.fixture(scope="session")
def texts() -> Path:
    """The folder of real texts that are not part of the project."""
    folder = Path(os.environ.get("LLM_JAX_SHARED_DATA", ROOT.parent / "shared" / "data")) / "text"
    if not folder.is_dir():
        pytest.skip(f"no real texts: {folder} is not there (LLM_JAX_SHARED_DATA names the folder above it)")
    return folder


def documents(count: int, seed: int = 0) -> list[str]:
    """Documents of 1 to 60 words, each different."""
    rng = random.Random(seed)
    return [f"{seed}-{i} " + " ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for i in range(count)]


def write_jsonl(path: Path, records: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in records))
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 400 documents."""
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "small.jsonl", documents(400))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def make(cache: Path) -> Callable[..., Corpus]:
    """make(source, sequence_length=..., any field of DataConfig) -> Corpus, with a cache that the session
    shares.
    """

    def make(source: Path | str, *, vocab: int = 320, sequence_length: int = 32, batch_size: int = 8, seed: int = 0,
             run_dir: Path | None = None, tokenizer: TokenizerConfig | None = None, **data: object) -> Corpus:  # fmt: skip
        config = DataConfig(**{"source": str(source), "cache_dir": str(cache), "workers": 1, **data})  # type: ignore[arg-type]
        return prepare(
            config, tokenizer or TokenizerConfig(vocab=vocab), sequence_length=sequence_length,
            batch_size=batch_size, seed=seed, run_dir=run_dir, log=lambda line: None,
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def corpus(make: Callable[..., Corpus], small: Path) -> Corpus:
    return make(small)
