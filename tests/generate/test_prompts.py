"""Prompts as token ids: names of control tokens are text, or tokens where they are asked for."""

from __future__ import annotations

import json

import pytest

from llm_jax.core.arguments import read_command
from llm_jax.core.errors import UserError
from llm_jax.data import TokenizerConfig, load_tokenizer
from llm_jax.data.sentencepiece_tokenizer import train
from llm_jax.generate.__main__ import GenerateCommand, read_requests
from llm_jax.generate.engine import Engine
from llm_jax.generate.id_tokenizer import IdTokenizer
from llm_jax.generate.request import Request
from llm_jax.huggingface.export_tokenizer import export_tokenizer
from tests.data.conftest import documents
from tests.data.test_huggingface_tokenizer import make_folder
from tests.generate.test_engine import Letters, opened

KINDS = ("sentencepiece", "gpt2", "llama3", "gemma", "exported")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """A tokenizer of every kind, each with control tokens."""
    trained = train(documents(100), TokenizerConfig(vocab=320))
    export_tokenizer(trained, folder := tmp_path_factory.mktemp("exported"))
    made = {"sentencepiece": trained, "exported": load_tokenizer(folder)}
    for kind in ("gpt2", "llama3", "gemma"):
        made[kind] = load_tokenizer(make_folder(kind, tmp_path_factory.mktemp(kind)))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_control_tokens_are_text_unless_they_are_asked_for(tokenizers, kind):
    tokenizer = tokenizers[kind]
    first, second = [*tokenizer.control_tokens][-2:]
    for text in (f"{first}user\nhi{second}\n", f"a{first}{first}日", f"{second}", f"x {first} y"):
        plain = Request(text).prompt_ids(tokenizer)
        assert plain == [tokenizer.bos_id, *tokenizer.encode(text)]
        assert not {*tokenizer.control_tokens.values()} & {*plain[1:]}
        assert tokenizer.decode(plain) == text
        ids = Request(text, control=True).prompt_ids(tokenizer)
        wanted = [tokenizer.control_tokens[name] for name in (first, second) for _ in range(text.count(name))]
        bos = tokenizer.bos_id
        wanted += [] if text.startswith(tokenizer.vocabulary()[bos]) else [bos]
        assert sorted(i for i in ids if i in tokenizer.control_tokens.values()) == sorted(wanted)
        assert tokenizer.decode(ids) == text.replace(first, "").replace(second, "")
    assert Request("no names", control=True).prompt_ids(tokenizer) == Request("no names").prompt_ids(
        tokenizer
    )
    assert tokenizer.encode(first) != [tokenizer.control_tokens[first]], "the switch is of one call"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_they_are_what_the_library_makes_of_them(tokenizers, kind):
    import tokenizers as library

    tokenizer = tokenizers[kind]
    backend = library.Tokenizer.from_str(tokenizer.files["tokenizer.json"].decode())
    names = [*tokenizer.control_tokens]
    for text in (f"{names[0]}a\n{names[-1]}{names[-1]} b", f"  {names[1]}  c"):
        assert tokenizer.encode_with_control(text) == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_names_bos_has_one(tokenizers, kind):
    tokenizer = tokenizers[kind]
    bos = tokenizer.vocabulary()[tokenizer.bos_id]
    assert Request(f"{bos}hi", control=True).prompt_ids(tokenizer) == Request("hi").prompt_ids(tokenizer)
    assert len(Request(f"{bos}hi").prompt_ids(tokenizer)) > len(Request("hi").prompt_ids(tokenizer)) + 1
    assert Request("", control=True).prompt_ids(tokenizer) == [tokenizer.bos_id]


def test_a_model_without_a_tokenizer_names_what_is_missing():
    with pytest.raises(UserError, match="prompt=<s>: no tokenizer, or give ids=1,2,3"):
        Request("<s>", control=True).prompt_ids(IdTokenizer(10, (), "no tokenizer"))


def test_prompts_of_the_command_line_and_of_files_can_have_them(tmp_path):
    lines = [{"prompt": "a", "control": True}, {"prompt": "b", "control": False}, {"prompt": "c"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "p.txt").write_text("d\n")

    def control(*words: str) -> list[bool]:
        command = read_command(["run", *words], GenerateCommand)
        assert command
        return [request.control for request in read_requests(command)]

    assert control(f"prompts={tmp_path / 'p.jsonl'}") == [True, False, False]
    assert control(f"prompts={tmp_path / 'p.jsonl'}", "control=true", "prompt=x") == [True, True, False, True]
    assert control(f"prompts={tmp_path / 'p.txt'}", "control=yes") == [True]
    assert control("prompt=x") == [False]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "control": "maybe"}\n')
    with pytest.raises(UserError, match=r"line 1: control=.* must be true or false"):
        control(f"prompts={tmp_path / 'p.jsonl'}")


def test_a_stop_string_that_names_a_control_token_ends_the_text_at_the_token():
    """Control tokens have no text, so the string alone would never come."""
    model = opened()
    engine = Engine.of(model, slots=1, max_tokens=32)
    (free,) = engine.generate([Request("x", max_tokens=4, temperature=0)])
    engine.tokenizer = Letters()
    engine.tokenizer.control_tokens = {"<|im_end|>": free.tokens[2], "<|other|>": free.tokens[3]}
    (result,) = engine.generate([Request("x", max_tokens=4, temperature=0, stop=("no", "<|im_end|>"))])
    first = free.tokens.index(free.tokens[2])
    assert (result.finished, result.tokens) == ("stop", free.tokens[: first + 1])
    assert result.text == engine.tokenizer.decode(result.tokens[:-1])


@pytest.mark.parametrize("prompt", ["z", "az", "zzz"])
def test_a_text_whose_ids_the_model_has_no_row_for_names_the_prompt(prompt):
    """Not ids=97, which nobody has given."""
    model = opened()
    engine = Engine.of(model, slots=1, max_tokens=32)
    engine.tokenizer = Letters()
    engine.tokenizer.encode = lambda text: [97 if c == "z" else 3 for c in text]
    with pytest.raises(
        UserError, match=f"prompt='{prompt}': .* the token id 97 of it, and .* below 96: the tokenizer"
    ):
        engine.submit(Request(prompt, max_tokens=4))


@pytest.mark.parametrize("name", ["p.JSONL", "p.Jsonl", "p.ndjson"])
def test_endings_in_capitals_are_endings(tmp_path, name):
    (tmp_path / name).write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    words = ["run", f"prompts={tmp_path / name}"]
    assert [request.prompt for request in read_requests(read_command(words, GenerateCommand))] == ["a", "b"]
    (other := tmp_path / "p.JSON").write_text('[{"prompt": "a"}]')
    with pytest.raises(UserError, match=r"p\.JSON: must be text with a prompt a line, or \.jsonl"):
        read_requests(read_command(["run", f"prompts={other}"], GenerateCommand))
