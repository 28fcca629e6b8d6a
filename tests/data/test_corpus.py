"""The batch at step s is a pure function of (corpus, tokenizer, seed, s), and nothing is lost on the way."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.data import BATCH_KEYS, batch_sha
from llm_jax.data.token_cache import all_held_out_error

from .conftest import ROOT, documents, write_jsonl


def test_batch_has_the_promised_arrays(corpus):
    batch = corpus.batch(3)
    assert tuple(batch) == BATCH_KEYS
    for key, array in batch.items():
        assert array.shape == (8, 32)
        assert array.dtype == (np.float32 if key == "weights" else np.int32)
    assert batch["tokens"].max() < corpus.tokenizer.vocab_size


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows_of_all_processes_make_the_global_batch(corpus, processes):
    share = 8 // processes
    for step in (0, 7, 1000):
        parts = [corpus.batch(step, range(p * share, (p + 1) * share)) for p in range(processes)]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in BATCH_KEYS}
        assert batch_sha(joined) == batch_sha(corpus.batch(step))


def test_batch_does_not_depend_on_what_was_read_before(make, small, corpus):
    steps = [0, 1, 5, 40, 400, 3000]
    forwards = [batch_sha(corpus.batch(s)) for s in steps]
    fresh = make(small)
    backwards = [batch_sha(fresh.batch(s)) for s in reversed(steps)]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == len(steps)


def test_batch_does_not_depend_on_workers_or_shards(make, small, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_jax.data.token_cache._SHARD_BYTES", 9_000)  # about ten shards instead of one
    other = make(small, workers=2, cache_dir=str(tmp_path))
    assert other.fingerprint == corpus.fingerprint
    assert [batch_sha(other.batch(s)) for s in range(20)] == [batch_sha(corpus.batch(s)) for s in range(20)]


def test_batches_are_the_same_in_another_process(corpus, small, cache):
    code = (
        "import sys; from llm_jax.data import *\n"
        "c = prepare(DataConfig(source=sys.argv[1], cache_dir=sys.argv[2]), TokenizerConfig(vocab=320), "
        "sequence_length=32, batch_size=8, seed=0, run_dir=None, log=lambda s: None)\n"
        "print(c.fingerprint, batch_sha(c.batch(77)), *[m for m in ('tensorflow', 'torch') if m in "
        "sys.modules])"
    )
    command = [sys.executable, "-c", code, str(small), str(cache)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert out == [corpus.fingerprint, batch_sha(corpus.batch(77))]  # and neither TensorFlow nor Torch


def test_golden_batch():
    """Changes only if packing, order or format change: then every old run stops being repeatable,
    so say so.
    """
    from llm_jax.data.packing import PackedRows

    tokens = np.arange(1, 101, dtype=np.uint16)
    rows = PackedRows(tokens, np.array([0, 30, 37]), np.array([30, 7, 63]), length=16, seed=3)
    # The order of three epochs at seed 3 is 0 2 1, 2 0 1, 2 0 1: written out and cut by hand.
    assert [int(rows.row(i)["tokens"].sum()) for i in range(8)] == [136, 406, 760, 1016, 1272, 1318, 664, 920]
    assert rows.row_order(0).tolist() == [
        1,
        0,
        2,
        3,
        5,
        4,
    ]  # by a reference in Python's integers, as in test_packing


def test_seed_changes_the_order_and_not_the_documents(make, small):
    one, two = make(small, seed=1), make(small, seed=2)
    assert batch_sha(one.batch(0)) != batch_sha(two.batch(0))
    assert one.fingerprint == two.fingerprint


def test_all_tokens_of_an_epoch_are_seen_once(make, small):
    corpus = make(small, sequence_length=32, batch_size=1)
    part = corpus._parts[0].train
    rows = corpus.train_tokens // 32
    seen = np.concatenate(
        [
            *(corpus.batch(s)["tokens"][0] for s in range(rows)),
            part.row(rows)["tokens"][: corpus.train_tokens % 32],
        ]
    )
    all_tokens = np.concatenate(
        [part.tokens[s : s + n] for s, n in zip(part.starts_N, part.lengths_N, strict=True)]
    )
    assert np.array_equal(np.bincount(seen, minlength=320), np.bincount(all_tokens, minlength=320))
    assert corpus.epoch(0) == pytest.approx(32 / corpus.train_tokens)


def test_held_out_documents_are_never_trained_on(corpus):
    """Every document of the corpus begins with a name of its own, "0-17 "."""

    def names(batches) -> set[str]:
        rows = (corpus.tokenizer.decode(row) for batch in batches for row in batch["tokens"])
        return {name for row in rows for name in re.findall(r"0-\d+ ", row)}

    held_out, trained = names(corpus.held_out_batches(4)), names(map(corpus.batch, range(300)))
    assert len(held_out) > 3
    assert len(trained) > 300
    assert not held_out & trained


def test_held_out_set_is_the_same_for_another_tokenizer(make, small, corpus):
    other = make(small, vocab=400)
    ids = [
        np.flatnonzero(np.isin(c._parts[0].train.starts_N, c._parts[0].held_out.starts_N))
        for c in (corpus, other)
    ]
    assert not any(map(len, ids))
    hashes = [c.held_out_documents for c in (corpus, other)]
    assert hashes[0] == hashes[1] > 0
    assert other.fingerprint != corpus.fingerprint


def test_held_out_batches_have_every_token_once_and_end_with_padding(corpus):
    batches = list(corpus.held_out_batches(4))
    kept = np.concatenate([batch["segments"].ravel() > 0 for batch in batches])
    assert kept.sum() == corpus.held_out_tokens
    assert batches[-1]["tokens"].shape == (4, 32)
    targets = sum(float(batch["weights"].sum()) for batch in batches)
    assert (
        targets == corpus.held_out_tokens - corpus.held_out_documents
    )  # every token but each document's first
    assert len(list(corpus.held_out_batches(4, limit=1))) == 1
    again = [batch_sha(batch) for batch in corpus.held_out_batches(4)]
    assert again == [batch_sha(batch) for batch in batches]


def test_weighted_target_bytes_are_the_bytes_of_the_text(corpus):
    """Bits per byte are divided by this sum."""
    sizes = corpus.tokenizer.token_bytes
    counted = sum(int(sizes[b["targets"][b["weights"] > 0]].sum()) for b in corpus.held_out_batches(4))
    text = "".join(
        corpus.tokenizer.decode(b["tokens"][r]) for b in corpus.held_out_batches(4) for r in range(4)
    )
    assert counted == len(text.encode())


def test_mixture_draws_rows_by_weight(make, small, tmp_path):
    other = write_jsonl(tmp_path / "other.jsonl", ["ZZZ " * 30 + str(i) for i in range(50)])
    mixed = make("unused", mixture={str(small): 3.0, str(other): 1.0}, batch_size=10)
    rows = [mixed.tokenizer.decode(row) for s in range(40) for row in mixed.batch(s)["tokens"]]
    share = sum("Z" in row for row in rows) / len(rows)
    assert share == pytest.approx(0.25, abs=0.01)
    fresh = make("unused", mixture={str(small): 3.0, str(other): 1.0}, batch_size=10)
    assert batch_sha(mixed.batch(33)) == batch_sha(fresh.batch(33))
    assert set(mixed.epochs(0)) == {str(small), str(other)}
    assert mixed.epoch(9) == max(mixed.epochs(9).values())


def test_a_batch_is_what_a_naive_reading_of_the_whole_stream_gives(corpus):
    """Epochs of shuffled documents end to end, cut every 32 tokens, the rows of each round shuffled, 8 rows a
    batch.
    """
    from llm_jax.data.packing import shuffled

    part = corpus._parts[0].train
    texts = [
        part.tokens[start:][:length].tolist()
        for start, length in zip(part.starts_N.tolist(), part.lengths_N.tolist(), strict=True)
    ]
    stream = [token for epoch in range(3) for n in shuffled(len(texts), 0, epoch) for token in texts[n]]
    a_round = len(stream) // 3 // 32
    rows = [stream[i * 32 : i * 32 + 32] for i in range(3 * a_round)]
    rows = [rows[r * a_round + i] for r in range(3) for i in shuffled(a_round, 0, 2**32 + r)]
    assert len(rows) > 800
    for step in range(len(rows) // 8):
        assert corpus.batch(step)["tokens"].tolist() == rows[step * 8 : step * 8 + 8]


@pytest.mark.parametrize("weights", [(3.0, 1.0), (1.0, 1.0), (0.3, 0.2), (1e6, 1.0), (1.0, 1e-3)])
def test_a_mixture_takes_every_row_of_each_source_in_order_wherever_it_is_read(
    make, small, tmp_path, weights
):
    """So no row is lost or seen twice, and each source's share holds for every beginning of the run."""
    other = write_jsonl(tmp_path / "other.jsonl", ["ZZZ " * 30 + str(i) for i in range(20)])
    mixed = make("unused", mixture=dict(zip((str(small), str(other)), weights, strict=True)), batch_size=10)
    taken = [0, 0]
    rows = [row for step in range(60) for row in mixed.batch(step)["tokens"].tolist()]
    for i, row in enumerate(rows):
        which = 0 if row == mixed._parts[0].train[taken[0]]["tokens"].tolist() else 1
        assert row == mixed._parts[which].train[taken[which]]["tokens"].tolist()
        taken[which] += 1
        assert abs(taken[0] - (i + 1) * weights[0] / sum(weights)) <= 1.0
    for step in (59, 3, 31):
        assert mixed.batch(step)["tokens"].tolist() == rows[step * 10 : step * 10 + 10]
    mixed.batch(10**9)  # far away is no further than near


def test_the_same_document_is_on_one_side_of_the_split_only(make, small, tmp_path):
    """A document may be twice in a source, or in two sources of which the smaller holds out documents that
    the other would not.
    """
    texts = documents(400)
    tiny = write_jsonl(tmp_path / "tiny.jsonl", [*texts[7:27], *texts[7:27]])
    mixed = make("unused", mixture={str(small): 1.0, str(tiny): 1.0})

    def starts(which: str) -> set[str]:
        rows = (part for parts in mixed._parts for part in [getattr(parts, which)])
        return {
            mixed.tokenizer.decode(r.tokens[s : s + n])
            for r in rows
            for s, n in zip(r.starts_N, r.lengths_N, strict=True)
        }

    train, held_out = starts("train"), starts("held_out")
    assert held_out & set(texts[7:27])
    assert not train & held_out
    assert len(train | held_out) == 400


def test_the_same_documents_twice_in_a_mixture_are_refused(make, small, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(small.read_bytes())
    with pytest.raises(
        UserError, match=r"data\.mixture: '.*small\.jsonl' and '.*copy\.jsonl' are the same documents"
    ):
        make("unused", mixture={str(small): 1.0, str(copy): 2.0})


def test_corpus_smaller_than_a_batch_is_repeated(make, tmp_path):
    source = write_jsonl(tmp_path / "tiny.jsonl", documents(20))
    corpus = make(source, batch_size=512, vocab=300)
    assert corpus.train_tokens < 512 * 32
    batch = corpus.batch(0)
    assert (batch["segments"] > 0).all()
    assert corpus.epoch(0) > 1


def test_corpus_smaller_than_a_sequence_is_refused_with_the_numbers(make, tmp_path):
    source = write_jsonl(tmp_path / "tiny.jsonl", documents(20))
    with pytest.raises(
        UserError, match=r"tokens to train on, and one sequence needs 100,000; give more text"
    ):
        make(source, sequence_length=100_000, vocab=300)


def test_one_document_cannot_be_split(make, tmp_path):
    source = write_jsonl(tmp_path / "one.jsonl", ["only one document here, but it is long enough " * 40])
    with pytest.raises(UserError, match=r"held_out_fraction=0\.02: all 1 documents"):
        make(source, vocab=270)


@pytest.mark.parametrize(
    ("texts", "more", "message"),
    [
        (["the same text for all " * 5] * 30, {}, r"x.jsonl: all 30 documents are held out and none is left to train on: "
         r"they are all equal, and equal documents are held out together. Give other documents"),
        ([*["the same text for all " * 5] * 29, "all the same"], {"sequence_length": 4096},
         r"tokens to train on, and one sequence needs 4,096; give more text or a smaller train.sequence_length \(30 documents: only 2 of them are different, and equal"),
    ],
    ids=["all", "nearly all"],
)  # fmt: skip
def test_documents_that_are_equal_are_said_to_be(make, tmp_path, texts, more, message):
    """Not `data.held_out_fraction`, and not their number."""
    source = write_jsonl(tmp_path / "x.jsonl", texts)
    with pytest.raises(UserError, match=message):
        make(source, vocab=272, **more)


def test_documents_with_one_prompt_are_said_to_have_it():
    one, several = (str(all_held_out_error("x", 0.99, 30, 0, groups)) for groups in (1, 3))
    assert one.startswith(
        "data.source=x: all 30 documents are held out and none is left to train on: they all have one"
    )
    assert several.startswith("data.held_out_fraction=0.99: all 30 documents of x are held out")
    assert several.endswith(
        "(30 documents: they have only 3 prompts, and what has one prompt is held out together)"
    )


def test_run_folder_gets_the_tokenizer(make, small, corpus, tmp_path):
    from llm_jax.data import load_tokenizer

    make(small, run_dir=tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer").fingerprint == corpus.tokenizer.fingerprint


def test_importing_the_package_imports_nothing_heavy():
    heavy = "('tensorflow', 'tensorflow_datasets', 'sentencepiece', 'pandas', 'pyarrow', 'grain', 'jax')"
    code = f"import sys, llm_jax.data; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_stdlib_is_prepared_without_any_file_or_network(make):
    corpus = make("stdlib", vocab=4096, sequence_length=128, workers=2)
    assert corpus.train_documents > 500
    assert corpus.bytes_per_token > 3.5
    assert corpus.tokenizer.lossless
    assert "import" in "".join(corpus.tokenizer.decode(row) for row in corpus.batch(0)["tokens"])


@pytest.mark.parametrize(
    "name",
    ["tinyshakespeare.txt", "tinystories_238.txt", "de_eltec_7_novels.jsonl", "de_ud_gsd_sentences.txt"],
)
def test_real_texts_are_prepared_with_a_sensible_held_out_set(make, texts: Path, name):
    corpus = make(texts / name, vocab=1000, sequence_length=128)
    assert 0.002 < corpus.held_out_tokens / corpus.train_tokens < 0.2
    assert (corpus.batch(5)["segments"] > 0).all()
