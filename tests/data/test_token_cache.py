"""The token cache survives kills, serves two builders at once and never shows a half of anything."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from llm_jax.data import batch_sha
from llm_jax.data import cache as caching
from llm_jax.data.token_cache import document_hash, held_out_mask

from .conftest import ROOT


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
    monkeypatch.setattr(token_cache, "_write_shard", lambda folder, **job: (again.append(job["begin"]), whole(folder, **job)))
    resumed = make(small, cache_dir=str(tmp_path))
    assert again
    assert not set(again) & set(written)
    assert batch_sha(resumed.batch(9)) == batch_sha(corpus.batch(9))
    assert not [path for path in tree(tmp_path) if ".partial" in path or ".tmp-" in path]


def test_a_second_preparation_only_reads(make, small, cache, corpus, monkeypatch):
    before = tree(cache)
    monkeypatch.setattr("llm_jax.data.token_cache._build", pytest.fail)
    monkeypatch.setattr("llm_jax.data.vocabulary.train", pytest.fail)
    monkeypatch.setattr("llm_jax.data.sources._write_dataset", pytest.fail)
    make(small)
    assert tree(cache) == before


def test_two_processes_may_build_at_once(corpus, small, tmp_path):
    code = (
        "import sys; from llm_jax.data import *; import llm_jax.data.token_cache as t; t._SHARD_BYTES = 9000\n"
        "c = prepare(DataConfig(source=sys.argv[1], cache_dir=sys.argv[2], workers=1), TokenizerConfig(vocab=320), "
        "sequence_length=32, batch_size=8, seed=0, run_dir=None, log=lambda s: None)\n"
        "print(batch_sha(c.batch(5)))"
    )
    command = [sys.executable, "-c", code, str(small), str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
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
    from .conftest import documents, write_jsonl

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
