"""The tokenizer of a GGUF file, from its metadata: the ids of the tokenizer that the file was converted from."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel

from llm_jax.core.errors import UserError
from llm_jax.data import load_tokenizer
from llm_jax.data.chat_encoder import prompt_ids
from llm_jax.data.chat_template import CHATML, find_template
from llm_jax.data.config import TokenizerConfig
from llm_jax.huggingface.gguf.files import tokenizer_folder_of
from llm_jax.huggingface.gguf.pre_tokenizers import PRE_TOKENIZERS
from llm_jax.pretrained.load import main as load
from llm_jax.pretrained.model import open_model
from llm_jax.pretrained.save import main as save
from llm_jax.pretrained.source import open_source, tokenizer_folder
from llm_jax.pretrained.weights import weights_sha256
from tests.data.conftest import documents
from tests.huggingface.gguf_files import VOCAB, metadata, stored, write_gguf, write_model

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ODD = [
    " a  b",
    "x\t\ty\n\n",
    "12345 6.7",
    "naïve e\u0301",
    "日本 語",
    "😀👩‍👩‍👧",
    "<s><|im_end|>",
    "I'll",
    "\r\n",
    "   ",
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("LLM_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "gguf_cache"))


def lines() -> list[str]:
    rng = random.Random(1)
    return [*documents(100, seed=7), *ODD, *("".join(rng.choices(ODD, k=3)) for _ in range(50))]


@pytest.fixture(scope="module")
def spm(tmp_path_factory) -> sentencepiece.SentencePieceProcessor:
    """A small tokenizer of SentencePiece's, as Gemma's is: BPE, bytes, tokens for runs of spaces and line ends."""
    prefix = tmp_path_factory.mktemp("spm") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents(200)), model_prefix=str(prefix), model_type="bpe", vocab_size=VOCAB + 80,
        byte_fallback=True, character_coverage=0.99, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=False, split_digits=True, control_symbols=["<|im_end|>"],
        user_defined_symbols=["\u2581\u2581", "\u2581\u2581\u2581", "\n", "\n\n"], minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")


def of_spm(spm: sentencepiece.SentencePieceProcessor, **more) -> dict:
    """The metadata of a tokenizer, as llama.cpp's converter writes it."""
    ids = range(spm.vocab_size())
    tests = ((spm.is_unknown, 2), (spm.is_control, 3), (spm.is_unused, 5), (spm.is_byte, 6))
    types = [next((kind for test, kind in tests if test(i)), 1) for i in ids]
    tokens = [spm.id_to_piece(i) for i in ids]
    added = {i for i in ids if types[i] == 1 and not tokens[i].strip("\u2581\n") and len(tokens[i]) <= 3}
    added = {i for i in added if tokens[i] != "\u2581"}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [
            t.replace("\u2581", " ") if i in added else t for i, t in enumerate(tokens)
        ],
        "tokenizer.ggml.scores": [-1000.0 if i in added else spm.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [4 if i in added else kind for i, kind in enumerate(types)],
        "tokenizer.ggml.bos_token_id": spm.bos_id(),
        "tokenizer.ggml.eos_token_id": spm.eos_id(),
        "tokenizer.ggml.unknown_token_id": spm.unk_id(),
        "tokenizer.ggml.add_space_prefix": False,
        **more,
    }


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    """A small byte-level tokenizer."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(documents(200), trainer)
    return made


def of_bpe(bpe: Tokenizer, **more) -> dict:
    """The metadata of a tokenizer, as llama.cpp's converter writes it."""
    tree, size = json.loads(bpe.to_str()), bpe.get_vocab_size()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [bpe.id_to_token(i) for i in range(size)],
        "tokenizer.ggml.token_type": [3 if i < len(SPECIAL) else 1 for i in range(size)],
        "tokenizer.ggml.merges": [
            pair if isinstance(pair, str) else " ".join(pair) for pair in tree["model"]["merges"]
        ],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
        **more,
    }


def opened(path: Path, about: dict):
    return load_tokenizer(
        tokenizer_folder_of(write_gguf(path, "llama", about, {"x": np.ones(2, np.float32)}))
    )


def test_sentencepiece_scores_and_bytes_give_the_ids_of_the_library(spm, tmp_path):
    tokenizer = opened(tmp_path / "a.gguf", of_spm(spm))
    for line in lines():
        plain = line.replace("\u2581", "")
        assert tokenizer.encode(plain) == spm.encode(plain), plain
        assert tokenizer.decode(spm.encode(plain)) == plain
    assert (tokenizer.bos_id, tokenizer.eos_id) == (spm.bos_id(), spm.eos_id())
    assert tokenizer.eos_ids == (spm.eos_id(), spm.piece_to_id("<|im_end|>"))
    assert tokenizer.puts_bos  # as SentencePiece's tokenizers do where the file doesn't say
    assert tokenizer.encode_with_control("a<|im_end|>")[-1] == spm.piece_to_id("<|im_end|>")
    assert spm.piece_to_id("<|im_end|>") not in tokenizer.encode("a<|im_end|>")


def test_a_space_is_put_first_unless_the_file_says_otherwise(spm, tmp_path):
    about = of_spm(spm, **{"tokenizer.ggml.add_space_prefix": None, "tokenizer.ggml.add_bos_token": False})
    tokenizer = opened(tmp_path / "a.gguf", about)
    assert tokenizer.encode("the model") == spm.encode(" the model")
    assert tokenizer.decode(tokenizer.encode("the model")) == "the model"
    assert not tokenizer.puts_bos


def test_merges_and_control_tokens_give_the_ids_of_byte_level_bpe(bpe, tmp_path):
    tokenizer = opened(tmp_path / "a.gguf", of_bpe(bpe))
    bpe.encode_special_tokens = True
    for line in lines():
        assert tokenizer.encode(line) == bpe.encode(line, add_special_tokens=False).ids, line
        assert tokenizer.decode(tokenizer.encode(line)) == line
    assert tokenizer.lossless
    assert tokenizer.eos_ids == (2, 0)  # <|im_end|>, as the file says, and <|endoftext|>, which ends too
    assert not tokenizer.puts_bos
    assert tokenizer.control_tokens == {name: i for i, name in enumerate(SPECIAL)}


WORDS = {
    "gpt-2": ["I", "'ll", " pay", " 12345", " EUR", "...", "\n", "\n", "Öl"],
    "smollm": ["I", "'ll", " pay", " ", "1", "2", "3", "4", "5", " EUR", "...", "\n", "\n", "Öl"],
    "qwen2": ["I", "'ll", " pay", " ", "1", "2", "3", "4", "5", " EUR", "...\n\n", "Öl"],
    "llama-bpe": ["I", "'ll", " pay", " ", "123", "45", " EUR", "...\n\n", "Öl"],
    "tekken": ["I", "'ll", " pay", " ", "1", "2", "3", "4", "5", " EUR", "...\n\n", "Öl"],
}
"""How the models' own tokenizers divide "I'll pay 12345 EUR...\\n\\nÖl"."""


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_text_is_divided_into_words_as_the_models_own_tokenizer_does(bpe, tmp_path, name):
    file = write_gguf(tmp_path / "a.gguf", "llama", of_bpe(bpe, **{"tokenizer.ggml.pre": name}), {})
    backend = Tokenizer.from_file(str(tokenizer_folder_of(file) / "tokenizer.json"))
    same = {"deepseek-r1-qwen": "qwen2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}
    text = "I'll pay 12345 EUR...\n\nÖl"
    words = [text[begin:end] for _, (begin, end) in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert words == WORDS[same.get(name, name)]
    assert (backend.encode("e\u0301", add_special_tokens=False).ids == backend.encode("é").ids) == (
        name == "qwen2"
    )
    assert load_tokenizer(tokenizer_folder_of(file)).puts_bos == (same.get(name, name) == "llama-bpe")


def test_tekken_tells_upper_and_lower_case_apart(bpe, tmp_path):
    file = write_gguf(tmp_path / "a.gguf", "llama", of_bpe(bpe, **{"tokenizer.ggml.pre": "tekken"}), {})
    backend = Tokenizer.from_file(str(tokenizer_folder_of(file) / "tokenizer.json"))
    assert [part for part, _ in backend.pre_tokenizer.pre_tokenize_str("HelloWorld")] == ["Hello", "World"]


def test_the_chat_template_and_the_control_tokens_are_the_files(bpe, tmp_path):
    about = of_bpe(
        bpe, **{"tokenizer.chat_template.tool_use": "tools", "tokenizer.chat_templates": ["tool_use"]}
    )
    tokenizer = opened(tmp_path / "a.gguf", about)
    template = find_template("", TokenizerConfig(file=str(tokenizer_folder_of(tmp_path / "a.gguf"))))
    ids = prompt_ids(template, [{"role": "user", "content": "a<|im_end|>"}], None, tokenizer)
    assert ids[0] == 1
    assert ids.count(2) == 1  # the template's, not the user's
    assert template.source == CHATML
    assert template.with_tools == "tools"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer.ggml.model=rwkv: is not read; must be one of gpt2, llama"),
        ({"tokenizer.ggml.pre": "default"}, "tokenizer.ggml.pre=default: is not read; must be one of gpt-2, smollm"),
        ({"tokenizer.ggml.model": ["gpt2", "x"]}, "tokenizer.ggml.model=.'gpt2', 'x'.: is not read"),
        ({"tokenizer.ggml.merges": 7}, "tokenizer.ggml.merges: .7. merges no tokens"),
        ({"tokenizer.ggml.pre": "qwen"}, "did you mean 'qwen2'"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is missing from the metadata"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges is missing"),
        ({"tokenizer.ggml.merges": ["a b", "zz qq"]}, "tokenizer.ggml.merges: '(a b|zz qq)' merges no tokens"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens: must be an array of strings"),
        ({"tokenizer.ggml.token_type": None}, "tokenizer.ggml.token_type is missing"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type has 1 entries for 300 tokens"),
        ({"tokenizer.ggml.eos_token_id": None}, "tokenizer.ggml.eos_token_id is missing"),
        ({"tokenizer.ggml.eos_token_id": 300}, "tokenizer.ggml.eos_token_id=300: no token has this id; there are 300"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}, "bos_token_id is missing"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores is missing"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0] * 300}, "has no tokens for bytes"),
        ({"tokenizer.ggml.tokens": ["x"] * 300}, "tokenizer.ggml.tokens: 'x' is there twice, as 0 and 1"),
        ({"tokenizer.chat_template.../up": "x"}, "a template's name must be letters, digits"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_is_not_supported_is_refused_and_leaves_nothing(
    bpe, tmp_path, monkeypatch, more, message
):
    monkeypatch.setenv("LLM_JAX_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "a.gguf", "llama", of_bpe(bpe, **more), {})
    with pytest.raises(UserError, match=message) as error:
        tokenizer_folder_of(file)
    assert str(error.value).startswith(f"{file}: ")
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_files_are_made_once_and_anew_for_another_header(bpe, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_JAX_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "a.gguf", "llama", of_bpe(bpe), {})
    folder = tokenizer_folder_of(file)
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    assert tokenizer_folder_of(file) == folder
    assert (folder / "tokenizer.json").stat().st_mtime_ns == before
    write_gguf(file, "llama", of_bpe(bpe, **{"tokenizer.ggml.eos_token_id": 0}), {})
    assert tokenizer_folder_of(file) != folder
    assert load_tokenizer(tokenizer_folder_of(file)).eos_id == 0
    shutil.rmtree(tmp_path / "cache")
    assert (tokenizer_folder_of(file) / "tokenizer.json").is_file()


def test_commands_take_a_file_as_they_take_a_folder(bpe, tmp_path, capsys):
    from llm_jax.generate.__main__ import main as generate
    from llm_jax.run.initial_weights import experiment_from_pairs

    file = write_model(tmp_path / "blob", "llama", of_bpe(bpe))  # Ollama's files have no suffix
    assert generate([str(file), "ids=5,6,7", "max_tokens=4", "temperature=0"]) == 0
    text = capsys.readouterr().out
    assert load([str(file), f"run_dir={tmp_path / 'run'}"]) == 0
    assert save([str(tmp_path / "run"), str(tmp_path / "folder")]) == 0
    assert generate([str(tmp_path / "folder"), "ids=5,6,7", "max_tokens=4", "temperature=0"]) == 0
    assert capsys.readouterr().out.endswith(text)
    ends = json.loads((tmp_path / "folder" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [2, 0]
    fingerprints = {
        open_model(path).tokenizer.fingerprint for path in (file, tmp_path / "run", tmp_path / "folder")
    }
    assert len(fingerprints) == 1
    made = experiment_from_pairs([("experiment", "continue_pretraining"), ("from", str(file))])
    assert made.model.vocab == VOCAB
    assert made.tokenizer.file == str(tokenizer_folder(file))
    assert weights_sha256(file) != weights_sha256(tmp_path / "folder")
    assert open_source(file).experiment.name == "blob"


def test_a_file_without_a_tokenizer_generates_from_ids_only(tmp_path, capsys):
    from llm_jax.generate.__main__ import main as generate

    file = write_gguf(tmp_path / "a.gguf", "llama", metadata("llama"), stored("llama"))
    assert generate([str(file), "prompt=a"]) == 2
    error = capsys.readouterr().err
    assert "has no tokenizer" in error
    assert error.count("\n") == 1
    (tmp_path / "notes.txt").write_text("hello")
    assert generate([str(tmp_path / "notes.txt"), "prompt=a"]) == 2
    assert "notes.txt: is a file, but no GGUF file" in capsys.readouterr().err
