"""The documents that a run is trained on, as text, and what other texts share with them."""

from __future__ import annotations

import glob
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.files import read_json, user_path, write_atomic
from llm_jax.core.format import byte_size
from llm_jax.core.log import log_to_stderr
from llm_jax.data import cache
from llm_jax.data.generated import GENERATED
from llm_jax.data.sources import Source, resolve
from llm_jax.data.text_files import find_text_files
from llm_jax.data.token_cache import held_out_hash, held_out_mask
from llm_jax.evaluate.corpus import with_changes
from llm_jax.evaluate.ngrams import N, Overlap, find_overlaps
from llm_jax.experiment import Experiment
from llm_jax.pretrained.source import open_source
from llm_jax.run.prepare import corpus_settings

VERSION = 2
"""Of what an overlap is: raise it when `find_overlaps` changes."""
SEARCHED_BYTES = 2e9
"""The largest corpus that an evaluation searches, at about 10 MB a second."""


def overlaps_with_run(
    path: Path, texts: Sequence[str], n: int = N, log: Callable[[str], None] = log_to_stderr
) -> list[Overlap] | None:
    """What each text shares with the training documents of a run; None for a model whose corpus isn't known,
    as one of a Hugging Face folder.

    It is kept in the cache of the corpus, by the corpus's content, the texts and n. Raises UserError where
    the corpus is not there any more.
    """
    if not (path / "config.yaml").is_file():
        return None
    experiment = with_changes(open_source(path).experiment, [], path)
    documents, _, _ = corpus_settings(experiment)
    sources = [resolve(name, documents, log) for name in documents.sources()]
    key = cache.fingerprint(
        "overlaps", VERSION, [source.fingerprint for source in sources],
        documents.held_out_fraction, n, list(texts),
    )  # fmt: skip
    kept = documents.cache_path() / "overlaps" / f"{key[:32]}.json"
    if found := read_json(kept).get("overlaps"):
        return [Overlap(*one) for one in found]
    overlaps = find_overlaps(texts, training_texts(experiment, sources), n)
    with cache.writable(documents.cache_path()):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, json.dumps({"overlaps": overlaps}) + "\n")
    return overlaps


def overlaps_of_tasks(
    path: Path, texts: Mapping[str, Sequence[str]], log: Callable[[str], None] = log_to_stderr
) -> dict[str, list[Overlap]]:
    """`overlaps_with_run` of several tasks at once; texts: those of each task.

    A corpus that isn't here, would have to be downloaded, or is larger than `SEARCHED_BYTES` is not searched:
    then a line is logged, and there are none.
    """
    if not (path / "config.yaml").is_file():
        return {}
    try:
        problem = unsearched(path)
        found = (
            None
            if problem
            else overlaps_with_run(path, [one for of in texts.values() for one in of], log=log)
        )
    except UserError as error:  # the run was moved here without its corpus
        problem, found = str(error), None
    if found is None:
        log(f"contamination isn't known: {problem}")
        return {}
    left = iter(found)
    return {name: list(itertools.islice(left, len(of))) for name, of in texts.items()}


def unsearched(path: Path) -> str:
    """Why a run's corpus isn't searched without being asked to; "" if it is."""
    documents = open_source(path).experiment.data
    size = 0
    for name in documents.sources():
        if name == "stdlib" or name in GENERATED:
            continue
        path = user_path(name)
        if not path.exists() and not glob.has_magic(name):
            return f"{name} is no file or folder here"
        prepared = (path / "dataset_info.json").is_file()
        files = list(path.iterdir()) if prepared else find_text_files(name, path).read
        size += sum(file.stat().st_size for file in files)
    if size > SEARCHED_BYTES:
        return f"the corpus has {byte_size(size)}; python -m llm_jax.evaluate.contamination searches it"
    return ""


def training_texts(experiment: Experiment, sources: Sequence[Source]) -> Iterator[tuple[str, str]]:
    """(where, text) of each document of the sources that is not held out. The text of a record is all texts
    in it, one after the other."""
    documents, _, more = corpus_settings(experiment)
    are_records = experiment.objective.reads == "record"
    hashes = [hashes_of_documents(source, more.get("encoder")) for source in sources]
    # A document that one source holds out is held out everywhere, as in `Corpus`.
    held_out_H = np.concatenate(
        [hashes_N[held_out_mask(hashes_N, documents.held_out_fraction)] for hashes_N in hashes]
    )
    for source, hashes_N in zip(sources, hashes, strict=True):
        records = source.records()
        for i in np.flatnonzero(~np.isin(hashes_N, held_out_H)).tolist():
            text = source.text(records, i).decode("utf-8", "replace")
            yield source.where(i), "\n".join(texts_in(json.loads(text))) if are_records else text


def hashes_of_documents(source: Source, encoder: Any) -> np.ndarray:
    """The hash of each document of a source that decides whether it is held out, uint64 [N]."""
    records = source.records()
    return np.array([held_out_hash(source.text(records, i), encoder) for i in range(len(records))], np.uint64)


def texts_in(tree: Any) -> Iterator[str]:
    """Every text in a JSON value.

    >>> list(texts_in({"messages": [{"role": "user", "content": "Hi"}], "n": 1}))
    ['user', 'Hi']
    """
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from texts_in(value)
