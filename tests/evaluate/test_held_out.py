"""The evaluate command reproduces a run's own scores on any layout, and scores any corpus."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from llm_jax.data import load_tokenizer
from llm_jax.data.token_cache import document_hash, held_out_mask
from llm_jax.evaluate.__main__ import main
from llm_jax.pretrained.model import open_model, read_tokenizer
from tests.data.conftest import documents, write_jsonl
from tests.data.test_sentencepiece_tokenizer import without_space
from tests.tiny_run import launch, summary, write_experiment


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_jsonl(folder / "other.jsonl", documents(60, seed=7))
    run = (f"experiment={write_experiment(folder)}", f"run_dir={folder / 'run'}")
    assert (
        launch(
            *run,
            "train.steps=4",
            "evaluate.final_batches=null",
            "data.held_out_fraction=0.1",
            "optimizer.learning_rate=1e-2",
        )
        == 0
    )
    return folder


def scored(folder: Path, *arguments: object) -> dict:
    assert main([str(folder / "run"), f"out={folder / 'scores.json'}", *map(str, arguments)]) == 0
    return json.loads((folder / "scores.json").read_text())


def test_a_short_text_is_scored_whole(trained, tmp_path):
    """Even if no document is left to train on, which a run would need."""
    text = documents(1, seed=3)[0][:60]
    (tmp_path / "short.txt").write_text(text)
    found = scored(trained, f"data.source={tmp_path / 'short.txt'}")
    assert found["eval_tokens"] == 1 + len(load_tokenizer(trained / "run" / "tokenizer").encode(text))


def test_a_tokenizer_that_changes_text_is_reported_once(trained, tmp_path, capsys):
    """As the tokenizer of a run folder of before does, which has no space."""
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / "tokenizer" / "tokenizer.model").write_bytes(without_space("bpe"))
    scored(tmp_path, f"data.source={write_jsonl(tmp_path / 'x.jsonl', documents(20))}")
    written = capsys.readouterr()
    change = "it changes text or ignores a setting: 'the model' becomes 'the\\u2581model'"
    assert written.err.count(change) == 1
    assert "this tokenizer is not lossless" in written.out
    lines: list[str] = []
    read_tokenizer(tmp_path / "run", lines.append)
    assert [change in line for line in lines] == [True]


@pytest.mark.parametrize("more", [(), ("layout=fsdp",), ("layout=tensor", "mesh.tensor=2")], ids=" ".join)
def test_the_runs_own_loss_is_reproduced(trained, more):
    """Exactly, except for the order of sums on other layouts."""
    expected, found = summary(trained / "run"), scored(trained, *more)
    for key in ("eval_loss", "eval_bits_per_byte"):
        assert found[key] == pytest.approx(expected[key], rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(expected["eval_loss"]), rel=1e-6)
    assert found["held_out_documents"] > 10


def test_another_corpus_is_scored_as_by_hand(trained):
    """By hand, each document alone through the model as a library; the command has all documents in one long
    row."""
    import jax
    import jax.numpy as jnp

    found = scored(
        trained,
        f"data.source={trained / 'other.jsonl'}",
        "data.held_out_fraction=0.2",
        "train.sequence_length=2048",
        "train.batch_size=1",
    )
    assert found["held_out_tokens"] <= 2048
    opened, tokenizer = open_model(trained / "run"), load_tokenizer(trained / "run" / "tokenizer")
    texts = documents(60, seed=7)
    held_out = held_out_mask(np.array([document_hash(text.encode()) for text in texts], np.uint64), 0.2)
    total, count, size = 0.0, 0, 0
    log_p_of = jax.jit(
        lambda parameters, tokens: jax.nn.log_softmax(opened.program.model(parameters)(tokens))
    )
    for text in (text for text, held in zip(texts, held_out, strict=True) if held):
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        row = jnp.zeros((1, 512), jnp.int32).at[0, : len(ids)].set(jnp.array(ids))
        with jax.set_mesh(opened.place.mesh):
            log_p = np.asarray(log_p_of(opened.parameters, row))[0]
        total -= sum(log_p[i, token] for i, token in enumerate(ids[1:]))
        count += len(ids) - 1
        size += len(text.encode())
    assert found["eval_tokens"] == count
    assert found["eval_loss"] == pytest.approx(total / count, rel=1e-5)  # float32
    assert found["eval_bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_the_batch_size_can_differ_from_the_runs(trained):
    """A layout may need another batch size than the run's."""
    assert scored(trained, "train.batch_size=2", "batches=1")["batch_size"] == 2
    assert scored(trained, "train.batch_size=16", "layout=fsdp")["eval_loss"] == pytest.approx(
        summary(trained / "run")["eval_loss"], rel=1e-6
    )


def test_tokens_and_batches_limit_what_is_scored(trained, capsys):
    assert scored(trained, "tokens=300")["eval_tokens"] <= 512  # two batches of 8 rows of 32
    capsys.readouterr()
    assert scored(trained, "batches=1")["eval_tokens"] <= 256
    printed = capsys.readouterr().out
    for word in ("nats per token", "perplexity", "bits/byte", "step 4", "written: "):
        assert word in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data.sorce=x"], "did you mean 'data.source'?"),
        (["data.source=/no/such.txt"], "no such file or folder"),
        (["train.steps=3"], "train.steps=3: there is no key 'train.steps'"),
        (["tokens=0"], "tokens=0: must be a whole number, at least 1"),
        (["tokens=10", "batches=1"], "give one of them"),
        (["step=99"], "step=99: "),
        (["layout=fsdpp"], "did you mean 'fsdp'?"),
        (["dtype=float8"], "must be one of float32, bfloat16"),
        (["out=x.txt"], "must be a file that ends in .json"),
        (["train.batch_size=9", "layout=fsdp"], "9 is not a multiple of 8"),
    ],
)
def test_a_mistake_is_one_line(trained, capsys, arguments, says):
    assert main([str(trained / "run"), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert says in error


def test_a_model_of_nan_is_no_score(trained, monkeypatch, capsys):
    def broken(*arguments, **options):
        opened = open_model(*arguments, **options)
        return dataclasses.replace(opened, parameters=jax.tree.map(lambda w: w * np.nan, opened.parameters))

    monkeypatch.setattr("llm_jax.evaluate.held_out.open_model", broken)
    assert main([str(trained / "run"), f"out={trained / 'nan.json'}"]) == 2
    assert "its held-out loss is nan at step 4" in capsys.readouterr().err
    assert not (trained / "nan.json").exists()


def test_a_folder_without_a_model_is_refused(tmp_path, capsys):
    for arguments, says in (
        ([str(tmp_path / "none")], "no such folder"),
        (["data.source=x"], "RUN_OR_FOLDER is missing"),
        (["a", "b"], "b: unexpected extra word"),
    ):
        assert main(arguments) == 2
        assert says in capsys.readouterr().err
