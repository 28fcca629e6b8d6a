"""N-grams that a task shares with a corpus, and scores with and without these items."""

from __future__ import annotations

import contextlib
import io
import os
import random
import time
from pathlib import Path

import pytest

from llm_jax.data import DataConfig
from llm_jax.evaluate import contamination, statistics, training_text
from llm_jax.evaluate.contamination import main, with_and_without
from llm_jax.evaluate.ngrams import Overlap, find_overlaps, tokens_of
from llm_jax.evaluate.tasks.task import Item, Task
from tests.tiny_run import launch, write_experiment

WORDS = ["alpha", "beta", "gamma", "delta"]


def plainly(texts, documents, n):
    """Overlaps by sets of tuples, with line ends and without: slow, and obviously right."""

    def found(line_ends):
        def read(text):
            return [token for token in tokens_of(text) if line_ends or token != "\n"]

        def grams(text):
            row = read(text)
            return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]

        seen = {}
        for where, text in documents:
            for gram in grams(text):
                seen.setdefault(gram, where)
        for text in texts:
            hits = [i for i, gram in enumerate(grams(text)) if gram in seen]
            covered = {i + k for i in hits for k in range(n)}
            where = seen[grams(text)[hits[0]]] if hits else ""
            yield Overlap(len(read(text)), len(covered), n, where)

    return [max(both, key=lambda one: one.share) for both in zip(found(True), found(False), strict=True)]


def test_overlaps_equal_those_of_a_plain_count():
    rng = random.Random(0)
    some = lambda length: "".join(rng.choice(WORDS) + rng.choice([" ", " ", "\n  "]) for _ in range(length))  # noqa: E731
    texts = [some(rng.randrange(30)) for _ in range(60)]
    documents = [(f"document {i}", some(60) + " other " + some(40)) for i in range(12)]
    found = find_overlaps(texts, documents, 6)
    assert found == plainly(texts, documents, 6)
    assert 5 < sum(overlap.covered > 0 for overlap in found) < 55
    assert any(not overlap.checked for overlap in found)
    one_way = [
        overlap.tokens for overlap in find_overlaps([text.replace("\n", " ") for text in texts], documents, 6)
    ]
    assert any(a.tokens > b and a.covered for a, b in zip(found, one_way, strict=True))  # with line ends more


def test_case_and_white_space_do_not_hide_a_copy_but_another_word_does():
    document = [("a", "The quick\n  brown fox, jumps over the lazy dog today")]
    copy, changed = find_overlaps(
        ["the QUICK brown fox, jumps over", "the quick brown cat, jumps over"], document, 5
    )
    assert (copy.share, copy.where) == (1.0, "a")
    assert changed.covered == 0
    assert find_overlaps(["a b c d e"], [], 5) == [Overlap(5, 0, 5)]
    assert find_overlaps([], document, 5) == []


def test_a_score_is_given_with_and_without_the_items_that_share_something():
    overlaps = [Overlap(20, 20, 10, "x"), Overlap(20, 10, 10, "y"), Overlap(20, 0, 10), Overlap(5, 0, 10)]
    right = [True, True, False, True]
    found = with_and_without(overlaps, lambda items: statistics.proportion([right[i] for i in items]))
    assert (found.n, found.n_items, found.unchecked, found.covered) == (10, 2, 1, 0.75)
    assert found.share == pytest.approx(2 / 3)
    assert (found.value_with, found.value_without) == (0.75, 0.5)
    all_shared = with_and_without(overlaps[:2], lambda items: statistics.proportion([True for _ in items]))
    assert all_shared.value_without is None


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contamination")
    (run := folder / "run").mkdir()  # only its configuration is read
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert launch(f"experiment={write_experiment(folder)}", "--show") == 0
    (run / "config.yaml").write_text(shown.getvalue())
    return run


def test_the_corpus_of_a_run_is_searched_without_its_held_out_documents(run, tmp_path, monkeypatch, capsys):
    experiment = training_text.with_changes(training_text.open_source(run).experiment, [], run)
    corpus = training_text.corpus_settings(experiment)[0]
    (source,) = [training_text.resolve(name, corpus, print) for name in corpus.sources()]
    records = source.records()
    every = [source.text(records, i).decode() for i in range(len(records))]
    trained = [text for _, text in training_text.training_texts(experiment, [source])]
    assert 0 < len(trained) < len(every)
    held_out = [text for text in every if text not in set(trained)]
    monkeypatch.setenv("LLM_JAX_CACHE", str(corpus.cache_path()))
    first, second = training_text.overlaps_with_run(run, [trained[0], "z q " * 20], 8)
    assert (first.share, second.share) == (1.0, 0.0)
    assert first.where
    file = tmp_path / "items.txt"
    file.write_text(trained[0])
    capsys.readouterr()
    assert main([str(run), f"file={file}", "n=8", f"out={tmp_path / 'found.json'}"]) == 0
    assert "1 of 1 texts share 8 tokens in a row" in capsys.readouterr().out
    assert (tmp_path / "found.json").is_file()
    # A second search reads what the first one found, and not the corpus.
    monkeypatch.setattr(training_text, "find_overlaps", None)
    assert training_text.overlaps_with_run(run, [trained[0], "z q " * 20], 8) == [first, second]
    assert held_out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["file=no.jsonl"], "file=no.jsonl: no such file"),
        ([], "file=FILE is missing"),
        (["file=x.txt", "n=2"], "n=2: must be"),
    ],
)
def test_mistakes_are_one_line(arguments, line, tmp_path, capsys):
    assert main([str(tmp_path), *arguments]) == 2
    assert line in capsys.readouterr().err


def human_eval() -> Path:
    shared = os.environ.get("LLM_JAX_SHARED_DATA")
    file = (
        (Path(shared) if shared else Path(__file__).parents[3] / "shared" / "data")
        / "evaluation"
        / "HumanEval.jsonl.gz"
    )
    if not file.is_file():
        pytest.skip(f"{file} is not there (LLM_JAX_SHARED_DATA)")
    return file


def test_the_standard_library_against_humaneval_takes_less_than_a_minute(monkeypatch, tmp_path):
    """About 37 of 164 solutions share ten tokens with the corpus of the quickstart: idioms, nearly all."""
    from llm_jax.data.documents import numbered_records
    from llm_jax.data.stdlib_files import stdlib_documents

    records = numbered_records(human_eval(), text_key="canonical_solution", document_bytes=4096, separator="")
    texts = [text.decode() for _, text in records if text]
    started = time.monotonic()
    documents = ((name, content.decode()) for name, content in stdlib_documents())
    found = find_overlaps(texts, documents, contamination.N)
    assert time.monotonic() - started < 60
    assert len(found) == 164
    assert 32 <= sum(overlap.covered > 0 for overlap in found) <= 44
    assert DataConfig().source == "stdlib"


def test_a_corpus_that_is_large_or_not_here_is_not_searched_and_a_line_reports_it(run, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(training_text, "overlaps_with_run", lambda path, texts, log: [Overlap(20, 0, 10)] * 3)
    texts = {"one": ["a", "b"], "two": ["c"]}
    found = training_text.overlaps_of_tasks(run, texts, lines.append)
    assert {name: len(of) for name, of in found.items()} == {"one": 2, "two": 1}
    monkeypatch.setattr(training_text, "SEARCHED_BYTES", 10)
    assert training_text.overlaps_of_tasks(run, texts, lines.append) == {}
    config = (run / "config.yaml").read_text()
    (moved := run.parent / "moved").mkdir()
    (moved / "config.yaml").write_text(config.replace("small.jsonl", "gone.jsonl"))
    assert training_text.overlaps_of_tasks(moved, texts, lines.append) == {}
    assert training_text.overlaps_of_tasks(run.parent, texts, lines.append) == {}  # no run
    assert len(lines) == 2
    assert "evaluate.contamination searches it" in lines[0]
    assert "gone.jsonl is no file or folder here" in lines[1]


def test_the_text_of_an_item_is_its_answer_or_the_question_with_a_short_one():
    task = Task(name="t", language="en", kind="choice", items=list)
    long = " ".join(f"word{i}" for i in range(12))
    items = [
        Item("a", context=f"Shot\n\n{long}:", choices=(" no", " yes"), gold=1),
        Item("b", context="Q:", choices=(long, "no"), gold=0),
        Item("c", context="Q:", text=long),
    ]
    assert contamination.texts_to_find(task, items, shots=2) == [f"{long}: yes", long, long]
    assert (
        contamination.texts_to_find(task, items)[0] == f"Shot\n\n{long}: yes"
    )  # no shots: it is the question's
    lines = Task(name="d", language="code", kind="choice", items=list, separator="\n")
    doctest = [Item("d", context="x = [1, 2]\n>>> f(x)\n", choices=("4", "3"), gold=0)]
    whole = ["x = [1, 2]\n>>> f(x)\n4"]
    assert contamination.texts_to_find(lines, doctest, shots=0) == whole
    assert contamination.texts_to_find(lines, doctest, shots=1) == whole  # its last line alone is too short
