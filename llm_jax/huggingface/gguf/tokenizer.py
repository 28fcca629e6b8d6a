"""The tokenizer in a GGUF file's metadata, as the files of a Hugging Face tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_jax.core.errors import UserError, one_of
from llm_jax.data.chat_template import FILE, MORE_FILES
from llm_jax.data.huggingface_tokenizer import TOKENIZER_CONFIG
from llm_jax.data.plain_text import added_token
from llm_jax.data.sentencepiece_tokenizer import SPACE
from llm_jax.data.tokenizer import JSON_NAME
from llm_jax.huggingface.export_tokenizer import merges
from llm_jax.huggingface.gguf.header import Header
from llm_jax.huggingface.gguf.pre_tokenizers import PRE_TOKENIZERS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens, as `tokenizer.ggml.token_type` numbers them."""
ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>")
"""Control tokens that end an answer whatever a file says about them (as in llama.cpp)."""
GENERATION = "generation_config.json"
TEMPLATE = "tokenizer.chat_template"
Tree = dict[str, Any]


@dataclass(frozen=True)
class GgufVocabulary:
    """The tokens of a file, checked."""

    header: Header
    tokens: list[str]
    types: list[int]

    def key(self, name: str, default: Any = None) -> Any:
        """The value of the key tokenizer.ggml.NAME."""
        return self.header.metadata.get(f"tokenizer.ggml.{name}", default)

    def required(self, name: str) -> Any:
        """The value of a key. Raises UserError where it is missing."""
        value = self.key(name)
        if value is None:
            raise UserError(
                f"{self.header.path}: tokenizer.ggml.{name} is missing from the metadata. Take another "
                "file of the model, or convert it anew with llama.cpp"
            )
        return value

    def id_of(self, name: str) -> int | None:
        """The id of a token that a key NAME_token_id gives; None where there is no such key. Raises UserError
        for an id that no token has."""
        i = self.key(f"{name}_token_id")
        if i is not None and (type(i) is not int or not 0 <= i < len(self.tokens)):
            raise UserError(
                f"{self.header.path}: tokenizer.ggml.{name}_token_id={i}: no token has this id; there are "
                f"{len(self.tokens):,}. Take another file of the model"
            )
        return i

    def array(self, name: str) -> list[Any]:
        """The value of a key with an entry for each token. Raises UserError for another number of them."""
        values = self.required(name)
        if not isinstance(values, list) or len(values) != len(self.tokens):
            count = f"has {len(values):,} entries" if isinstance(values, list) else "is no array"
            raise UserError(
                f"{self.header.path}: tokenizer.ggml.{name} {count} for {len(self.tokens):,} tokens. Take "
                "another file of the model"
            )
        return values


def has_tokenizer(header: Header) -> bool:
    """Whether a file has a tokenizer."""
    return header.metadata.get("tokenizer.ggml.model", "none") not in ("none", "no_vocab")


def read_vocabulary(header: Header) -> GgufVocabulary:
    """The tokens of a file. Raises UserError where something is missing or doesn't fit."""
    vocabulary = GgufVocabulary(header, header.metadata.get("tokenizer.ggml.tokens") or [], [])
    tokens = vocabulary.required("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError(
            f"{header.path}: tokenizer.ggml.tokens: must be an array of strings. Take another file"
        )
    types = vocabulary.array("token_type")
    seen: dict[str, int] = {}
    unique = list(tokens)
    for i, token in enumerate(tokens):
        if (first := seen.setdefault(token, i)) == i:
            continue
        if types[i] not in (UNUSED, UNKNOWN):
            raise UserError(
                f"{header.path}: tokenizer.ggml.tokens: {token!r} is there twice, as {first} and {i}. "
                "Take another file of the model"
            )
        unique[i] = f"<unused {i}>"
    return GgufVocabulary(header, unique, types)


def tokenizer_files(header: Header) -> dict[str, str]:
    """Name → text of the files of a file's tokenizer: tokenizer.json, tokenizer_config.json, the chat
    template, and generation_config.json with the tokens that end an answer. Empty where it has no tokenizer.

    Raises UserError for a tokenizer that isn't supported, or doesn't fit together.
    """
    if not has_tokenizer(header):
        return {}
    kind = header.metadata["tokenizer.ggml.model"]
    if not isinstance(kind, str) or kind not in BUILDERS:
        raise UserError(
            f"{header.path}: tokenizer.ggml.model={kind}: is not read; {one_of(str(kind), BUILDERS)}"
        )
    vocabulary = read_vocabulary(header)
    if vocabulary.id_of("eos") is None:
        vocabulary.required("eos_token_id")
    tree, adds_bos = BUILDERS[kind](vocabulary)
    adds_bos = bool(vocabulary.key("add_bos_token", adds_bos))
    bos = vocabulary.id_of("bos")
    if adds_bos and bos is None:
        vocabulary.required("bos_token_id")
    tree |= {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(vocabulary),
        "post_processor": puts_first(vocabulary.tokens[bos], bos) if adds_bos and bos is not None else None,
    }
    trees = {
        JSON_NAME: tree,
        TOKENIZER_CONFIG: tokenizer_config(vocabulary, adds_bos),
        GENERATION: generation_config(vocabulary),
    }
    return {name: json.dumps(one, ensure_ascii=False) + "\n" for name, one in trees.items()} | templates(
        header
    )


def added_tokens(vocabulary: GgufVocabulary) -> list[Tree]:
    """The tokens that are looked for in a text before it is divided: control tokens, which are special, and
    those that the model's makers added."""
    control = (CONTROL, UNKNOWN)
    return [
        {**added_token(i, token), "special": kind in control}
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (*control, USER_DEFINED)
    ]


def byte_level(vocabulary: GgufVocabulary) -> tuple[Tree, bool]:
    """(the parts of tokenizer.json, whether BOS is put first by default) of byte-level BPE."""
    name, path = vocabulary.required("pre"), vocabulary.header.path
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise UserError(
            f"{path}: tokenizer.ggml.pre={name}: is not read; {one_of(str(name), PRE_TOKENIZERS)}"
        )
    pre = PRE_TOKENIZERS[name]
    known = {token: i for i, token in enumerate(vocabulary.tokens)}
    pairs = []
    given = vocabulary.required("merges")
    for merge in map(str, given if isinstance(given, list) else [given]):
        at = merge.find(" ", 1)
        left, right = merge[:at], merge[at + 1 :]
        if at < 0 or not {left, right, left + right} <= known.keys():
            raise UserError(
                f"{path}: tokenizer.ggml.merges: {merge!r} merges no tokens of tokenizer.ggml.tokens. Take "
                "another file of the model"
            )
        pairs.append((left, right))
    tree = {
        "normalizer": {"type": "NFC"} if pre.composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre.steps()},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "ignore_merges": pre.ignore_merges, "vocab": known, "merges": pairs},
    }
    return tree, pre.adds_bos


def sentencepiece(vocabulary: GgufVocabulary) -> tuple[Tree, bool]:
    """(the parts of tokenizer.json, whether BOS is put first by default) of SentencePiece's BPE, which merges
    the pair whose result has the highest score, with bytes for what no token has."""
    scores, types = vocabulary.array("scores"), vocabulary.types
    if not all(type(score) is float for score in scores):
        raise UserError(
            f"{vocabulary.header.path}: tokenizer.ggml.scores: must be numbers. Take another file"
        )
    if BYTE not in types:
        raise UserError(
            f"{vocabulary.header.path}: has no tokens for bytes, which its tokenizer needs. Take another"
        )
    ranks = {
        token: (-scores[i], i) for i, token in enumerate(vocabulary.tokens) if types[i] == NORMAL and token
    }
    unknown = vocabulary.id_of("unknown")
    prefix = bool(vocabulary.key("add_space_prefix", True))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    added = {"type": "Prepend", "prepend": SPACE}
    decoders: list[Tree] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    tree = {
        "normalizer": {"type": "Sequence", "normalizers": [*([added] if prefix else []), spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": None if unknown is None else vocabulary.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: i for i, token in enumerate(vocabulary.tokens)},
            "merges": merges(ranks),
        },
    }
    return tree, True


BUILDERS: dict[str, Callable[[GgufVocabulary], tuple[Tree, bool]]] = {
    "gpt2": byte_level,
    "llama": sentencepiece,
}
"""By the names of `tokenizer.ggml.model`."""


def puts_first(bos: str, i: int) -> Tree:
    """The post-processor of a tokenizer.json that puts BOS before a text, and before each of two."""
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    sequences = [{"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [first, sequences[0]],
        "pair": [first, sequences[0], {"SpecialToken": {"id": bos, "type_id": 1}}, sequences[1]],
        "special_tokens": {bos: {"id": bos, "ids": [i], "tokens": [bos]}},
    }


def tokenizer_config(vocabulary: GgufVocabulary, adds_bos: bool) -> Tree:
    """The object of tokenizer_config.json. It names the generic class: others would replace the pipeline of
    tokenizer.json by their own."""
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {key: vocabulary.id_of(name) for key, name in names.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: vocabulary.tokens[i] for key, i in ids.items() if i is not None},
        "add_bos_token": adds_bos,
        "add_eos_token": bool(vocabulary.key("add_eos_token", False)),
        "clean_up_tokenization_spaces": False,
    }


def generation_config(vocabulary: GgufVocabulary) -> Tree:
    """The object of generation_config.json: EOS, and the other tokens that end an answer."""
    named = [vocabulary.id_of(name) for name in ("eos", "eot", "eom")]
    control = {token: i for i, token in enumerate(vocabulary.tokens) if vocabulary.types[i] == CONTROL}
    ends = [i for i in (*named, *(control.get(name) for name in ENDS)) if i is not None]
    ids = {"bos_token_id": vocabulary.id_of("bos"), "pad_token_id": vocabulary.id_of("padding")}
    return {"eos_token_id": list(dict.fromkeys(ends)), **{key: i for key, i in ids.items() if i is not None}}


def templates(header: Header) -> dict[str, str]:
    """Name → text of the files with chat templates. Raises UserError for a name that is no file's."""
    found = {}
    for key, source in header.metadata.items():
        if not isinstance(source, str) or not key.startswith(TEMPLATE):
            continue
        name = key.removeprefix(TEMPLATE).removeprefix(".")
        if name and not re.fullmatch(r"[\w-]+", name):
            raise UserError(
                f"{header.path}: {key}: a template's name must be letters, digits, _ and -. Take another file"
            )
        found[f"{MORE_FILES}/{name}.jinja" if name else FILE] = source
    return found
