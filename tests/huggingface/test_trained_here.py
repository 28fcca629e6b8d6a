"""A model that was trained here gives the same tokens and the same loss in transformers.

Needs the extra `reference`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from llm_jax.core.log import no_log
from llm_jax.data import TokenizerConfig, load_tokenizer
from llm_jax.data.sentencepiece_tokenizer import train
from llm_jax.data.token_cache import document_hash, held_out_mask
from llm_jax.evaluate.held_out import score
from llm_jax.evaluate.rewards import scores
from llm_jax.huggingface.export_tokenizer import export_tokenizer
from llm_jax.pretrained.model import open_model
from llm_jax.pretrained.save import main as save
from llm_jax.pretrained.save import save_model
from llm_jax.pretrained.weights import with_reward_head
from llm_jax.train.state import TrainModel
from tests.data.conftest import documents, write_jsonl
from tests.data.test_huggingface_tokenizer import KINDS, SPECIAL, make_folder
from tests.data.test_sentencepiece_tokenizer import HARD
from tests.huggingface.expected import CASES, FIXTURES
from tests.huggingface.test_export_tokenizer import texts
from tests.tiny_run import launch, write_experiment

REASON = "PyTorch and transformers are in the extra reference"


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason=REASON)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_auto_tokenizer_tokenises_as_the_file_says(transformers, tmp_path, kind):
    """That file agrees with the SentencePiece model that it was made of: test_export_tokenizer.py."""
    ours = train([*texts()[-60:], *documents(50)], TokenizerConfig(vocab=900, kind=kind))
    export_tokenizer(ours, tmp_path)
    theirs, read = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert "Llama" not in type(theirs).__name__
    for text in texts():
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == read.encode(text)
        assert kind == "unigram" or ids == ours.encode(text)
        assert theirs.decode(ids) == text
    assert theirs("the model")["input_ids"] == [ours.bos_id, *read.encode("the model")]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (
        1,
        2,
        0,
        ours.vocab_size,
    )
    theirs.save_pretrained(tmp_path / "again")  # what they write of it
    again = load_tokenizer(tmp_path / "again")
    assert [again.encode(text) for text in HARD] == [read.encode(text) for text in HARD]
    assert (again.bos_id, again.eos_id, again.pad_id) == (1, 2, 0)


@pytest.mark.parametrize("kind", [*KINDS, "llama2"])
def test_folders_of_theirs_are_tokenised_as_they_do(transformers, tmp_path, kind):
    folder = make_folder(
        kind, tmp_path, bos_token=SPECIAL[0], eos_token=SPECIAL[1], tokenizer_class="PreTrainedTokenizerFast"
    )
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in [*texts(), f"a {SPECIAL[1]} in a text"]:
        assert theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ours.encode(
            text
        )
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)


@pytest.mark.parametrize(
    "model",
    [(), ("model.norm=layer", "model.position=learned", "model.positions=2048", "model.activation=gelu",
          "model.bias_qkv=true", "model.bias_out=true", "model.bias_mlp=true")],
    ids=["llama", "gpt2"],
)  # fmt: skip
def test_the_held_out_loss_is_the_same(transformers, tmp_path, model):
    """To 1e-4: trained, evaluated here; exported, read by AutoTokenizer and AutoModelForCausalLM, each
    held-out document by itself.
    """
    torch = pytest.importorskip("torch", reason=REASON)
    run, exported, other = (
        tmp_path / "run",
        tmp_path / "exported",
        write_jsonl(tmp_path / "other.jsonl", documents(60, seed=7)),
    )
    assert (
        launch(
            f"experiment={write_experiment(tmp_path)}",
            f"run_dir={run}",
            "train.steps=30",
            "optimizer.learning_rate=1e-2",
            *model,
        )
        == 0
    )
    changes = {
        "data.source": str(other),
        "data.held_out_fraction": "0.2",
        "train.sequence_length": "2048",
        "train.batch_size": "1",
    }
    here = score(run, list(changes.items()))
    assert here.held_out_tokens <= 2048  # so every document is whole in one row
    assert save([str(run), str(exported)]) == 0

    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    total, count, size = 0.0, 0, 0
    for text in held_out(other, 0.2):
        ids = [
            tokenizer.bos_token_id,
            *tokenizer(text, add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        with torch.no_grad():
            total += (len(ids) - 1) * float(theirs(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
        count += len(ids) - 1
        size += len(text.encode())
    assert here.eval_tokens == count
    assert here.eval_loss < math.log(320) - 0.5  # it has learned something
    assert here.eval_loss == pytest.approx(total / count, abs=1e-4)
    assert here.eval_bits_per_byte == pytest.approx(total / math.log(2) / size, abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_reward_model_gives_the_same_rewards(transformers, tmp_path, name):
    """To 1e-5: a head of random numbers on each open model, saved, read as a classifier with one label."""
    torch = pytest.importorskip("torch", reason=REASON)
    model = open_model(FIXTURES / name, dtype="float32", tokenizer=False)
    config = dataclasses.replace(model.config, outputs="reward")
    program = TrainModel(config, model.experiment.optimizer, model.place)
    parameters = with_reward_head(model.parameters, program)
    head = np.random.default_rng(0).normal(size=(1, config.embed)).astype(np.float32)
    parameters["head"] = jax.device_put(head, parameters["head"].sharding)
    made = dataclasses.replace(model, program=program, parameters=parameters, folder=None)
    save_model(made, tmp_path / "saved", log=no_log)
    ids = [np.arange(5, 5 + 7), np.arange(3, 3 + 19)]
    again = open_model(tmp_path / "saved", dtype="float32", tokenizer=False, outputs="reward")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "saved", dtype=torch.float32
    )
    with torch.no_grad():
        expected = [float(theirs.eval()(torch.tensor(one[None])).logits[0, 0]) for one in ids]
    np.testing.assert_allclose(scores(again, ids), expected, rtol=1e-5, atol=1e-5)


def held_out(path: Path, fraction: float) -> list[str]:
    """The texts of a JSONL file that are held out."""
    found = [json.loads(line)["text"] for line in path.open()]
    mask = held_out_mask(np.array([document_hash(text.encode()) for text in found], np.uint64), fraction)
    return [text for text, held in zip(found, mask, strict=True) if held]
