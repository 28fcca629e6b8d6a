"""Detokenizing one token at a time: the parts join to the tokenizer's text, and no stop string is shown,
wherever tokens are cut."""

from __future__ import annotations

import itertools
import random

import pytest

from llm_jax.data import TokenizerConfig, load_tokenizer
from llm_jax.data.sentencepiece_tokenizer import train
from llm_jax.generate.detokenizer import Detokenizer, StopStrings
from llm_jax.huggingface.export_tokenizer import export_tokenizer
from tests.data.conftest import documents
from tests.data.test_huggingface_tokenizer import make_folder

TEXTS = (
    " a  b\t\n\n    if x_1:\r\n é 日本 😀 \u00a0ﬁ  ",
    "😀😀é\ufffd!",
    "\ufffd\ufffd\ufffd\ufffd\ufffd",
    "plain",
    "",
)


@pytest.fixture(scope="module")
def tokenizer():
    return train(documents(100), TokenizerConfig(vocab=320))


class Bytes:
    """A tokenizer whose tokens are one to three bytes, cut anywhere."""

    def __init__(self, seed: int):
        self.random, self.tokens = random.Random(seed), []

    def encode(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            n = self.random.randint(1, 3)
            self.tokens.append(data[:n])
            ids.append(len(self.tokens) - 1)
            data = data[n:]
        return ids

    def decode(self, ids) -> str:
        return b"".join(self.tokens[i] for i in ids).decode(errors="replace")


def pushed(decode, before: list[int], ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(decode, before)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_parts_are_the_whole_text(tokenizer, text):
    prompt = tokenizer.encode("def é")
    parts = pushed(tokenizer.decode, [tokenizer.bos_id, *prompt], tokenizer.encode(text))
    assert "".join(parts) == text
    for seed in range(20):
        cut = Bytes(seed)
        assert "".join(pushed(cut.decode, cut.encode("é😀"), cut.encode(text))) == text


def test_half_a_character_waits_for_its_other_half(tokenizer):
    parts = pushed(tokenizer.decode, [], tokenizer.encode("a😀b"))
    assert not any("\ufffd" in part for part in parts)
    assert "😀" in parts


def test_bytes_that_are_not_utf8_are_returned_as_they_decode(tokenizer):
    """Random bytes: broken characters of every kind, beside whole ones."""
    one_byte = [i for i, size in enumerate(tokenizer.token_bytes) if size == 1]
    generator = random.Random(0)
    for _ in range(50):
        ids = [generator.choice(one_byte) for _ in range(30)] + tokenizer.encode("😀")
        assert "".join(pushed(tokenizer.decode, [], ids)) == tokenizer.decode(ids)


def test_a_word_after_the_prompt_keeps_its_space():
    """With a tokenizer like Llama 2's, whose text begins with a space that decoding removes."""
    words = ["▁the", "▁end", "s", "▁"]

    def decode(ids) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert pushed(decode, [0], [1, 2, 3, 1]) == [" end", "s", " ", " end", ""]
    assert pushed(decode, [], [0, 1]) == ["the", " end", ""]


@pytest.mark.parametrize(
    ("stops", "text", "shown", "found"),
    [
        (["\n\n"], "one\n\ntwo", "one", "\n\n"),
        (["abcd", "bc"], "xabcx", "xa", "bc"),
        (["abab"], "aababab", "a", "abab"),
        (["b", "ab"], "xab", "x", "ab"),
        (["abcd", "bc"], "xabcd", "xa", "bc"),
        (["end"], "never en", "never en", None),
        ([], "all of it", "all of it", None),
        (["x"], "x", "", "x"),
    ],
)
def test_text_ends_before_the_first_whole_stop_string_however_it_is_cut(stops, text, shown, found):
    for cuts in range(2 ** (len(text) - 1)) if len(text) < 9 else (0, 1, 2 ** (len(text) - 1) - 1):
        parts = [text[0]]
        for i, character in enumerate(text[1:]):
            parts[-1:] = [parts[-1], character] if cuts >> i & 1 else [parts[-1] + character]
        stop = StopStrings(stops)
        out = [stop.push(part) for part in parts]
        assert "".join(out) + stop.flush() == shown
        assert stop.found == found
        if found:
            assert "".join(out) == shown


def raw(tokenizer, data: bytes) -> list[int]:
    """Byte tokens, one for each byte."""
    names = tokenizer.vocabulary()
    return [names.index(f"<0x{byte:02X}>") for byte in data]


@pytest.fixture(scope="module")
def tokenizers(tokenizer, tmp_path_factory):
    """A tokenizer of every kind that is read: SentencePiece's, and each family's tokenizer.json."""
    made = {"sentencepiece": tokenizer}
    for kind in ("gpt2", "llama3", "gemma", "llama2"):
        made[kind] = load_tokenizer(make_folder(kind, tmp_path_factory.mktemp(kind)))
    export_tokenizer(tokenizer, folder := tmp_path_factory.mktemp("exported"))
    return {**made, "exported": load_tokenizer(folder)}


KINDS = ("sentencepiece", "gpt2", "llama3", "gemma", "llama2", "exported")
WITH_BYTES = ("sentencepiece", "gemma", "llama2", "exported")
SCRIPTS = (
    "日本",
    "한국어",
    "é😀",
    "x😀😀y",
    "👨‍👩‍👧",
    "日a本",
    "naïve",
    " the  日本 model\n\n",
    "\ufffd日\ufffd",
    "a</s>b <|eot_id|>",
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_streams_is_the_whole_decoding_at_every_cut(tokenizers, kind):
    """Prompt and continuation, cut after each token; and the continuation ended after each."""
    tokenizer = tokenizers[kind]
    for text in SCRIPTS:
        ids = tokenizer.encode(text)
        for cut in range(len(ids) + 1):
            assert "".join(pushed(tokenizer.decode, [], ids[:cut])) == tokenizer.decode(ids[:cut])
            before, after = [tokenizer.bos_id, *ids[:cut]], ids[cut:]
            whole, streamed = tokenizer.decode([*before, *after]), pushed(tokenizer.decode, before, after)
            pairs = zip(tokenizer.decode(before), whole, strict=False)
            shown = len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])
            assert "".join(streamed) == whole[shown:]


@pytest.mark.parametrize("kind", WITH_BYTES)
@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("日本".encode(), "日本"),
        ("日".encode() + b"\xff" + "本".encode(), "日\ufffd本"),
        ("日本".encode()[:-1], "日\ufffd\ufffd"),
        (b"\xff\xff\xff\xff\xff" + "é".encode(), "\ufffd" * 5 + "é"),
        (b"\xf0\x9f\x98" + "日".encode() + b"\xf0\x9f", "\ufffd" * 3 + "日" + "\ufffd" * 2),
        ("\ufffd日".encode(), "\ufffd日"),
    ],
    ids=[
        "characters",
        "0xFF between them",
        "max_tokens in one",
        "0xFF first",
        "cut on both sides",
        "U+FFFD itself",
    ],
)
def test_a_byte_that_is_no_character_takes_none_with_it(tokenizers, kind, data, text):
    """The decoder of the library gives up a whole run of byte pieces for one of them."""
    tokenizer = tokenizers[kind]
    ids = raw(tokenizer, data)
    assert tokenizer.decode(ids) == text
    parts = pushed(tokenizer.decode, [], ids)
    assert "".join(parts) == text
    assert text[0] == "\ufffd" or parts[2] == "日", "a whole character doesn't wait for the next ones"


@pytest.mark.parametrize("kind", WITH_BYTES)
def test_a_stop_string_ends_the_text_inside_of_a_run_of_bytes(tokenizers, kind):
    tokenizer = tokenizers[kind]
    for text, stops, shown in [
        ("日本語です", ["本語"], "日"),
        ("é😀😀", ["😀"], "é"),
        ("日本", ["日"], ""),
        ("日本", ["本日"], "日本"),
    ]:
        detokenizer, stop = Detokenizer(tokenizer.decode, [tokenizer.bos_id]), StopStrings(stops)
        out = "".join(stop.push(detokenizer.push(i)) for i in raw(tokenizer, text.encode()))
        out += stop.push(detokenizer.flush()) + stop.flush()
        assert out == shown
        assert (stop.found is not None) == (stops[0] in text)


@pytest.mark.parametrize("kind", WITH_BYTES)
def test_a_character_that_the_prompt_begins_comes_with_its_last_byte(tokenizers, kind):
    tokenizer = tokenizers[kind]
    data = "日本".encode()
    for cut in range(1, len(data)):
        before, after = raw(tokenizer, data[:cut]), raw(tokenizer, data[cut:])
        streamed = "".join(pushed(tokenizer.decode, before, [*after, *raw(tokenizer, b"x")]))
        assert streamed == "日本x"[len(data[:cut].decode(errors="ignore")) :]
    # bytes that never become a character were shown with the prompt, and are not shown twice
    assert (
        "".join(pushed(tokenizer.decode, raw(tokenizer, b"\xff\xe6"), tokenizer.encode("x"))).strip() == "x"
    )
    assert "".join(pushed(tokenizer.decode, tokenizer.encode("\ufffd"), raw(tokenizer, b"x"))) == "x"


def test_a_word_keeps_its_space_after_many_tokens_without_text(tokenizers):
    """SentencePiece drops the first space of what it decodes: control tokens alone are no context."""
    tokenizer = tokenizers["llama2"]
    the = tokenizer.encode("x the")
    ids = [*the, *[tokenizer.pad_id] * 30, *the]
    assert "".join(pushed(tokenizer.decode, [], ids)) == tokenizer.decode(ids) == "x the x the"
    assert (
        "".join(pushed(tokenizer.decode, ids[:-2], ids[-2:]))
        == tokenizer.decode(ids)[len(tokenizer.decode(ids[:-2])) :]
    )


@pytest.mark.parametrize("kind", WITH_BYTES)
def test_random_bytes_stream_as_they_decode(tokenizers, kind):
    """Bytes of which about half are part of a character, cut anywhere."""
    tokenizer, generator = tokenizers[kind], random.Random(1)
    names = tokenizer.vocabulary()
    of_byte = [names.index(f"<0x{byte:02X}>") for byte in range(256)]
    for _ in range(100):
        data = b"".join(
            generator.choice([bytes([generator.randrange(256)]), generator.choice("aé日😀").encode()])
            for _ in range(12)
        )
        ids = [of_byte[byte] for byte in data]
        cut = generator.randrange(len(ids))
        ids[cut:cut] = tokenizer.encode(generator.choice(["", "a 日", "\n"]))
        assert "".join(pushed(tokenizer.decode, [], ids)) == tokenizer.decode(ids)


DECODERS = {
    "Metaspace": lambda d: (d.Metaspace(prepend_scheme="always"), "▁the ▁ ▁▁a x 日"),
    "Metaspace without a first space": lambda d: (d.Metaspace(prepend_scheme="never"), "▁the ▁ ▁▁a x 日"),
    "bytes in T5": lambda d: (d.Sequence([d.ByteFallback(), d.Metaspace()]), "▁the ▁ x <0x41> <0x20>"),
    "suffixes": lambda d: (d.BPEDecoder(suffix="</w>"), "the</w> un do</w> </w>"),
    "Llama 2": lambda d: (
        d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)]),
        "▁the ▁ x ▁▁",
    ),
    "bytes of GPT-2": lambda d: (d.ByteLevel(), "Ġthe æ Ĺ ¥ x ð Ł"),
}


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_of_a_tokenizer_json_streams_as_it_decodes(name):
    from tokenizers import decoders

    decoder, words = DECODERS[name](decoders)
    pieces, generator = words.split(" "), random.Random(2)

    def decode(ids) -> str:
        return decoder.decode([pieces[i] for i in ids]) if ids else ""

    for _ in range(200):
        ids = [generator.randrange(len(pieces)) for _ in range(generator.randrange(14))]
        assert "".join(pushed(decode, [], ids)) == decode(ids)
