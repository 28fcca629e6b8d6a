"""The token cache survives kills, serves two builders at once and never shows a half of anything."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from llm_jax.data import batch_sha
from llm_jax.data import cache as caching
from llm_jax.data.token_cache import document_hash, held_out_mask

from .conftest import ROOT, documents, write_jsonl


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_killed_build_resumes_its_finished_shards(make, small, corpus, tmp_path, monkeypatch):
    from llm_jax.data import token_cache

    monkeypatch.setattr(token_cache, "_SHARD_BYTES", 9_000)
    written = []
    whole = token_cache._write_shard

    def killed_at_the_fourth(folder, **job):
        (folder / "tokens").write_bytes(b"half a shard")
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(job["begin"])
        whole(folder, **job)

    monkeypatch.setattr(token_cache, "_write_shard", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        make(small, cache_dir=str(tmp_path))
    (partial,) = (tmp_path / "tokens").iterdir()
    assert partial.name.endswith(".partial")

    again = []
    monkeypatch.setattr(
        token_cache, "_write_shard", lambda folder, **job: (again.append(job["begin"]), whole(folder, **job))
    )
    resumed = make(small, cache_dir=str(tmp_path))
    assert again
    assert not set(again) & set(written)
    assert batch_sha(resumed.batch(9)) == batch_sha(corpus.batch(9))
    assert not [path for path in tree(tmp_path) if ".partial" in path or ".tmp-" in path]


PREPARE = (
    "import sys; from llm_jax.data import *; import llm_jax.data.token_cache as t; t._SHARD_BYTES = 9000\n"
    "from llm_jax.core.errors import UserError\n"
    "try: c = prepare(DataConfig(source=sys.argv[1], cache_dir=sys.argv[2], workers=2), "
    "TokenizerConfig(vocab=320), "
    "sequence_length=32, batch_size=8, seed=0, run_dir=None, log=lambda s: None); "
    "print(batch_sha(c.batch(5)))\n"
    "except UserError as error: sys.exit(f'error: {error}')"
)


def test_a_build_killed_with_its_workers_at_work_goes_on_from_its_finished_shards(
    make, tmp_path, monkeypatch
):
    monkeypatch.setattr("llm_jax.data.token_cache._SHARD_BYTES", 9_000)  # as in PREPARE
    source = write_jsonl(tmp_path / "many.jsonl", documents(4000))
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", PREPARE, str(source), str(cache)]

    def shards() -> dict[str, int]:
        found = cache.glob("tokens/*.partial/0*-*[0-9]")
        return {path.name: path.stat().st_mtime_ns for path in found if ".tmp-" not in path.name}

    process = subprocess.Popen(command, cwd=ROOT)
    while len(shards()) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.kill()  # SIGKILL: no handler, no clean-up
    assert process.wait() == -signal.SIGKILL
    while (
        subprocess.run(["pgrep", "-f", f"tokenize_worker {cache}"], stdout=subprocess.DEVNULL).returncode == 0
    ):
        time.sleep(0.05)  # its workers notice between two shards
    left = shards()
    assert 3 <= len(left) < 90

    kept = tmp_path / "kept"
    shutil.copytree(cache, kept)
    (partial,) = (cache / "tokens").iterdir()
    for name in left:  # a shard that were made again would have the right tokens
        tokens = np.fromfile(partial / name / "tokens", np.uint16)
        tokens[tokens == 2] = 3
        tokens.tofile(partial / name / "tokens")
    marked = make(source, cache_dir=str(cache))
    assert (marked._parts[0].train.tokens == 3).any()

    resumed, fresh = make(source, cache_dir=str(kept)), make(source, cache_dir=str(tmp_path / "fresh"))
    assert np.array_equal(resumed._parts[0].train.tokens, fresh._parts[0].train.tokens)
    assert not [
        path for folder in (cache, kept) for path in tree(folder) if ".partial" in path or ".tmp-" in path
    ]


@pytest.mark.parametrize("limit", [2_000, 30_000, 100_000])
def test_a_cache_that_takes_no_more_is_one_line_and_the_next_start_goes_on(corpus, small, tmp_path, limit):
    """A limit on the size of files stands for a full disk; it strikes while datasets, tokenizers or tokens
    are written.
    """
    command = [sys.executable, "-c", PREPARE, str(small), str(tmp_path)]
    limited = subprocess.run(
        ["bash", "-c", f'ulimit -f {limit // 1024}; exec "$@"', "-", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 1
    assert re.fullmatch(
        rf"error: data\.cache_dir={tmp_path}: cannot be written: File too large; make room.*\n",
        limited.stderr,
    )
    assert subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip() == batch_sha(corpus.batch(5))


def test_more_workers_than_documents_are_no_harm(make, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_jax.data.token_cache._SHARD_BYTES", 100)
    source = write_jsonl(
        tmp_path / "few.jsonl", ["some words of text, and some more"[i:] * 9 for i in range(3)]
    )
    assert make(source, vocab=285, workers=64, cache_dir=str(tmp_path)).train_documents == 2


def test_a_second_preparation_only_reads(make, small, cache, corpus, monkeypatch):
    before = tree(cache)
    monkeypatch.setattr("llm_jax.data.token_cache._build", pytest.fail)
    monkeypatch.setattr("llm_jax.data.train_tokenizer.train", pytest.fail)
    monkeypatch.setattr("llm_jax.data.sources._write_dataset", pytest.fail)
    make(small)
    assert tree(cache) == before


def test_two_processes_may_build_at_once(corpus, small, tmp_path):
    command = [sys.executable, "-c", PREPARE, str(small), str(tmp_path)]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.strip() == batch_sha(corpus.batch(5))
    assert not [path for path in tree(tmp_path) if ".partial" in path or ".tmp-" in path]


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        caching.build_once(tmp_path / "thing", build)
    assert tree(tmp_path) == []


def test_what_a_dead_process_left_is_removed_and_a_living_ones_is_not(tmp_path):
    import socket

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f"thing.tmp-{socket.gethostname()}-{pid}" for pid in (dead.pid, os.getppid())]
    for name in names:
        (tmp_path / name).mkdir()
    caching.build_once(tmp_path / "thing", lambda folder: None)
    assert tree(tmp_path) == sorted(["thing", names[1]])


def test_a_changed_file_is_a_new_corpus(make, tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl", documents(60))
    one = make(path, vocab=300)
    write_jsonl(path, documents(61))
    assert make(path, vocab=300).fingerprint != one.fingerprint


def test_held_out_documents_are_a_share_by_hash_and_at_least_one():
    hashes_N = np.array([document_hash(str(i).encode()) for i in range(10_000)], np.uint64)
    share = held_out_mask(hashes_N, 0.02).mean()
    assert 0.015 < share < 0.025
    assert held_out_mask(hashes_N[:3], 1e-9).sum() == 1
    order = np.random.default_rng(0).permutation(10_000)
    assert np.array_equal(held_out_mask(hashes_N[order], 0.02), held_out_mask(hashes_N, 0.02)[order])


def test_a_failing_worker_is_an_error_with_its_reason(tmp_path):
    from llm_jax.data.token_cache import _run

    with pytest.raises(RuntimeError, match=r"tokenising process ended with 1:[\s\S]*source\.json"):
        _run(tmp_path, [(0, 1), (1, 2)], 2)
