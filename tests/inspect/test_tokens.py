"""Tokens as a page shows them: their bytes are the text's, words are found in them, and tokenizers are
measured on small texts."""

from __future__ import annotations

import pytest

from llm_jax.core.errors import UserError
from llm_jax.data import TokenizerConfig
from llm_jax.data.sentencepiece_tokenizer import train
from llm_jax.data.token_labels import Token, Vocabulary, find_word, token_bytes
from llm_jax.inspect.tokenizers import Sample, SampleTokens, measure, samples
from tests.data.conftest import documents

TEXT = "naïve 日本 model\n\t  reads 😀 42."


@pytest.fixture(scope="module")
def tokenizer():
    return train(documents(300), TokenizerConfig(vocab=320))


def test_the_bytes_of_the_tokens_are_those_of_the_text(tokenizer):
    parts = Vocabulary(tokenizer).tokens(tokenizer.encode(TEXT))
    assert b"".join(p.data for p in parts).decode() == TEXT


def test_bytes_of_byte_level_tokens_are_found_too():
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(documents(100), trainer)
    written = [bpe.id_to_token(i) for i in bpe.encode(TEXT).ids]
    assert b"".join(token_bytes(w, len(w)) for w in written).decode() == TEXT


def test_control_tokens_and_rows_that_pad_the_embedding_have_names_and_no_bytes(tokenizer):
    vocabulary = Vocabulary(tokenizer)
    assert vocabulary[tokenizer.bos_id] == Token(tokenizer.bos_id, b"", "<s>")
    assert vocabulary[5000].label == "#5000"


def tokens_of(*texts: str) -> list[Token]:
    return [Token(i, text.encode(), "") for i, text in enumerate(texts)]


def test_a_word_is_the_tokens_that_it_lies_in_and_the_last_whole_one():
    parts = [Token(1, b"", "<s>"), *tokens_of("We", " b", "ank", " on", " the", " ban", "k.", " banks")]
    assert find_word(parts, "bank", "x") == [6, 7]
    assert find_word(parts, "We", "x") == [1]
    with pytest.raises(UserError, match="word=ban: is no word of the context 'x'"):
        find_word(parts, "ban", "x")


def test_a_word_may_stand_in_quotes_or_at_a_dash_of_any_script():
    assert find_word(tokens_of("„", "Bank", "“", " und"), "Bank", "x") == [1]
    assert find_word(tokens_of("the ", "bank", "—", "ers"), "bank", "x") == [1]
    with pytest.raises(UserError, match="word=Bank"):
        find_word(tokens_of("Bank", "überfall"), "Bank", "x")
    assert find_word(tokens_of("我在", "银行", "工作"), "银行", "x") == [1]
    broken = [Token(1, "é".encode()[1:]), *tokens_of(" bank")]  # half a character before it
    assert find_word(broken, "bank", "x") == [1]


def test_measures_are_those_by_hand():
    sample = Sample("numbers", "language", "a 12  345")
    m = SampleTokens(sample, tokens_of("a", " 1", "2", "  ", "345"), True)
    assert m.bytes_per_token == 9 / 5
    assert m.fertility == 5 / 3
    assert m.digits_per_token == 5 / 3  # " 1", "2", "345"
    assert m.blank_per_token == 2
    assert (
        SampleTokens(Sample("zh", "language", "计算", spaced=False), tokens_of("计算"), True).fertility
        is None
    )


def test_the_samples_are_measured_and_are_lossless(tokenizer):
    found = measure("mine", tokenizer)
    assert {m.sample.name for m in found.measured} >= {
        "English",
        "German",
        "Numbers",
        "Python",
        "White space",
    }
    assert all(m.lossless for m in found.measured)
    assert [p.label for p in found.numbers["1984"]] == ["1", "9", "8", "4"]  # our tokenizers split digits
    assert all(sample.text.strip() for sample in samples())


def test_an_unseen_language_takes_about_one_token_per_byte(tokenizer):
    russian = next(m for m in measure("mine", tokenizer).measured if m.sample.name == "Russian")
    assert russian.bytes_per_token < 1.1
