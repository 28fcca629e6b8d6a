"""Tokenizers from a tokenizer.json: byte-level BPE, converted SentencePiece BPE, and unigram."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError, one_of
from llm_jax.core.files import inside, parse_json, text_of, write_atomic
from llm_jax.data.cache import fingerprint
from llm_jax.data.plain_text import BYTE, as_plain_text, control_names, dropout, vocabulary
from llm_jax.data.tokenizer import ABOUT_NAME, JSON_NAME, text_changes

MODELS = ("BPE", "Unigram")
MOST_TOKENS = 10_000_000
"""More tokens than any vocabulary has; a table with a row for each id is made only below it."""
TOKENIZER_CONFIG = "tokenizer_config.json"
FILES = (
    JSON_NAME, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files of a tokenizer in a Hugging Face folder. They are kept, and written back unchanged."""


class HuggingFaceTokenizer:
    """Encodes and decodes text with a tokenizer.json, by the `tokenizers` library.

    Documents are data: a special token's name in a text ("<|endoftext|>") is encoded as text. Added tokens
    that are not special (Pythia's runs of spaces) are ordinary tokens. A document is encoded at once, since
    only the pre-tokenizer knows where a text may be divided.
    """

    def __init__(self, file: Path, origin: str = "tokenizer.file") -> None:
        """`file` is a tokenizer.json; the files beside it name its control tokens.

        Raises UserError if tokenizer.json can't be read or is of another kind, and if there is no EOS.
        """
        self.files = {JSON_NAME: file.read_bytes()}
        self.files |= {
            name: inside(file.parent, name, origin).read_bytes()
            for name in (*FILES[1:], *more_templates(file.parent))
            if (file.parent / name).is_file()
        }
        text = text_of(self.files[JSON_NAME], f"{origin}: {JSON_NAME}")
        self._backend = _backend(text, origin)
        self._tree = parse_json(text, f"{origin}: {JSON_NAME}")
        kind = self._tree["model"].get("type", "BPE")  # the type is absent in old files
        if kind not in MODELS:
            raise UserError(f"{origin}: model.type={kind}: {one_of(kind, MODELS)}")
        moved = self._as_numbered_by_the_library()
        ids = special_ids(self._tree, file.parent, origin)
        self._plain = plain = as_plain_text(self._tree, ids["named"])
        own = [] if plain is self._tree else [fingerprint(_without_vocabulary(plain))]
        if own:
            self._backend = _backend(json.dumps(plain), origin)
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self._added = self._backend.get_added_tokens_decoder()
        self._token_strings: dict[int, str] = {
            i: piece for piece, i in self._backend.get_vocab(with_added_tokens=True).items()
        }
        self.vocab_size = max(self._token_strings) + 1
        if self.vocab_size > MOST_TOKENS:
            raise UserError(
                f"{origin}: {JSON_NAME} has a token {self.vocab_size - 1:,}; ids must be below "
                f"{MOST_TOKENS:,}"
            )
        self.eos_ids: tuple[int, ...] = tuple(i for i in ids["eos_ids"] if i in self._token_strings)
        if not self.eos_ids:
            raise UserError(
                f"{origin}: the EOS token, with which documents end, is not known; name eos_token in a "
                "tokenizer_config.json beside it"
            )
        self.eos_id = self.eos_ids[0]
        self.bos_id = ids["bos_id"] if ids["bos_id"] in self._token_strings else self.eos_id
        self.pad_id = (
            ids["pad_id"] if ids["pad_id"] in self._token_strings else 0
        )  # padding has segment 0, so any id would do
        self.fingerprint = fingerprint("huggingface", text, self.bos_id, self.eos_id, *own)
        stripping = {token.content for token in self._added.values() if token.lstrip or token.rstrip}
        changed = text_changes(self, control_names(plain) | stripping)
        self.lossless = not changed
        config = tree_of(file.parent / TOKENIZER_CONFIG, origin)
        self.remarks: tuple[str, ...] = (*moved, *not_applied(self._tree, config), *changed)

    def _as_numbered_by_the_library(self) -> list[str]:
        """Gives added tokens in the tree the ids that they have: the library numbers those anew whose ids
        leave a gap, or are another token's. Returns the first of them, in words.
        """
        added = self._tree.get("added_tokens") or []
        own_ids = [self._backend.token_to_id(token["content"]) for token in added]
        numbered = [
            token if own is None else {**token, "id": own} for token, own in zip(added, own_ids, strict=True)
        ]
        moved = [(old, new["id"]) for old, new in zip(added, numbered, strict=True) if old["id"] != new["id"]]
        if not moved:
            return []
        self._tree = {**self._tree, "added_tokens": numbered}
        old, own = moved[0]
        more = f", and so do {len(moved) - 1:,} more" * (len(moved) > 1)
        return [f"{old['content']} has the id {own}, not {old['id']} as in {JSON_NAME}{more}"]

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS or EOS. Raises UserError for half a surrogate pair."""
        return self._encode(self._backend, text).ids

    def _encode(self, backend: Any, text: str) -> Any:
        try:
            with _library(f"{JSON_NAME}: cannot encode {text[:40]!r}"):
                return backend.encode(text, add_special_tokens=False)
        except TypeError as error:
            raise UserError(f"cannot encode text that is not valid Unicode: {text[:40]!r}") from error

    def encode_with_control(self, text: str) -> list[int]:
        """The ids of `encode`, but names of control tokens are these tokens."""
        return self._encode(self._control_backend, text).ids

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """(the ids of `encode_with_control`, where each token begins and ends in the text, in characters)."""
        encoding = self._encode(self._control_backend, text)
        return encoding.ids, encoding.offsets

    @functools.cached_property
    def _control_backend(self) -> Any:
        """A second tokenizer: to switch the first one would change what other threads encode."""
        backend = _backend(json.dumps(self._plain), "tokenizer")
        backend.encode_special_tokens = False
        backend.no_truncation()
        backend.no_padding()
        return backend

    @functools.cached_property
    def puts_bos(self) -> bool:
        """Whether the files put BOS before every text: `add_bos_token` of tokenizer_config.json, else the
        post-processor of tokenizer.json."""
        config = self.files.get(TOKENIZER_CONFIG)
        asked = parse_json(config, TOKENIZER_CONFIG).get("add_bos_token") if config else None
        if isinstance(asked, bool):
            return asked
        with _library(f"{JSON_NAME}: cannot encode a text"):
            return self._backend.encode("a", add_special_tokens=True).ids[:1] == [self.bos_id]

    @functools.cached_property
    def control_tokens(self) -> dict[str, int]:
        """The ids of the control tokens, by name."""
        return {token.content: i for i, token in self._added.items() if token.special}

    @functools.cached_property
    def _byte_fallback(self) -> bool:
        return any(
            step.get("type") == "ByteFallback" for step in _steps(self._tree.get("decoder"), "decoders")
        )

    def encode_chunks(self, text: str) -> Iterator[list[int]]:
        """The ids of `encode`, as a single chunk."""
        yield self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens; bytes that are not UTF-8 become U+FFFD, one each.

        The library's own decoder of byte pieces gives up a whole run of them, with the characters in it, for
        one byte that is not UTF-8.
        """
        ids = [int(i) for i in ids]
        with _library(f"{JSON_NAME}: cannot decode {ids[:8]}"):
            text = self._backend.decode(ids, skip_special_tokens=True)
        if not self._byte_fallback or "\ufffd" not in text:
            return text
        control = set(self.control_tokens.values())
        pieces = [self._token_strings[i] for i in ids if i in self._token_strings and i not in control]
        return self._backend.decoder.decode(_broken_bytes_apart(pieces))

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [V]: the UTF-8 bytes of text of each token; 0 for special and unknown tokens, and for unused
        ids.
        """
        steps = _steps(self._tree.get("decoder"), "decoders")
        kinds = [step.get("type") for step in steps]
        written = [_replaced(step) for step in steps if step.get("type") in ("Replace", "Metaspace")]
        unknown = self._unknown_id
        sizes = np.zeros(self.vocab_size, np.int32)
        for i, piece in self._token_strings.items():
            if i in self._added:
                sizes[i] = 0 if self._added[i].special else len(piece.encode())
            elif i == unknown:
                continue
            elif "ByteLevel" in kinds:  # each byte is written as one character (GPT-2)
                sizes[i] = len(piece)
            elif "ByteFallback" in kinds and BYTE.fullmatch(piece):
                sizes[i] = 1
            else:
                for sign, meant in written:
                    piece = piece.replace(sign, meant)
                sizes[i] = len(piece.encode())
        return sizes

    @property
    def _unknown_id(self) -> int | None:
        model = self._tree["model"]
        return (
            model.get("unk_id")
            if model.get("type") == "Unigram"
            else self._backend.token_to_id(model.get("unk_token") or "")
        )

    def vocabulary(self) -> list[str]:
        """The string of every token as tokenizer.json writes it, by id; "" for an unused id."""
        return [self._token_strings.get(i, "") for i in range(self.vocab_size)]

    def save(self, folder: Path | str) -> None:
        """Writes the files unchanged, and an `about.json` with size, control ids and fingerprint."""
        about = {
            "format": "huggingface",
            "vocab_size": self.vocab_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "eos_ids": self.eos_ids,
            "pad_id": self.pad_id,
            "lossless": self.lossless,
            "sha256": self.fingerprint,
        }
        self.save_files(folder)
        write_atomic(Path(folder) / ABOUT_NAME, json.dumps(about, indent=2).encode() + b"\n")

    def save_files(self, folder: Path | str) -> None:
        """Writes the files unchanged, and no others, into a folder that is created if it is missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            write_atomic(Path(folder) / name, content)


def more_templates(folder: Path) -> list[str]:
    """The files of a folder with further chat templates."""
    return sorted(str(path.relative_to(folder)) for path in folder.glob("additional_chat_templates/*.jinja"))


def _broken_bytes_apart(pieces: list[str]) -> list[str]:
    """Pieces with U+FFFD for each byte piece that is part of no character, so that each run of byte pieces
    that is left is UTF-8.
    """
    made: list[str] = []
    for are_bytes, group in itertools.groupby(pieces, lambda piece: bool(BYTE.fullmatch(piece))):
        run = list(group)
        raw = bytes(int(piece[3:5], 16) for piece in run) if are_bytes else b""
        while raw:
            try:
                raw.decode()
                break
            except UnicodeDecodeError as error:
                made += [*run[: error.start], "\ufffd" * (error.end - error.start)]
                run, raw = run[error.end :], raw[error.end :]
        made += run
    return made


def not_applied(tree: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """The settings of a tokenizer.json and its tokenizer_config.json that have no effect, in words."""
    asked = {"dropout": dropout(tree), "truncation": tree.get("truncation"), "padding": tree.get("padding")}
    yield from (f"{key} is off" for key, value in asked.items() if value)
    wanted = config.get("add_prefix_space")
    for step in _steps(tree.get("pre_tokenizer"), "pretokenizers"):
        own = step.get("add_prefix_space", True)
        if step.get("type") == "ByteLevel" and wanted in (True, False) and wanted != own:
            yield f"{TOKENIZER_CONFIG}'s add_prefix_space={str(wanted).lower()} has no effect"
    known, named = vocabulary(tree), config.get("added_tokens_decoder")
    tokens = named.values() if isinstance(named, dict) else ()
    names = [token["content"] for token in tokens if isinstance(token, dict) and "content" in token]
    if missing := [str(name) for name in names if name not in known]:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        yield f"{JSON_NAME} has no {missing[0]}{more}, which {TOKENIZER_CONFIG} names"


def special_ids(tree: Mapping[str, Any], folder: Path, origin: str) -> dict[str, Any]:
    """The "bos_id" and "pad_id" (None for none) and the "eos_ids" of a tokenizer.json, from the files beside
    it in `folder`, and as "named" the ids of BOS and EOS whose tokens these files name.

    An `about.json` that `save` wrote comes first, then the tokens that tokenizer_config.json and
    special_tokens_map.json name, then the ids in config.json and generation_config.json. Of several EOS the
    first ends documents.
    """

    def beside(name: str) -> dict[str, Any]:
        return tree_of(folder / name, origin)

    known = vocabulary(tree)

    def named(name: str) -> list[int]:
        tokens = [beside(part).get(f"{name}_token") for part in (TOKENIZER_CONFIG, "special_tokens_map.json")]
        texts = [
            token.get("content") if isinstance(token, dict) else token for token in tokens
        ]  # a token, or an object that describes one
        return [known[text] for text in texts if isinstance(text, str) and text in known]

    def found(name: str) -> tuple[int, ...]:
        return tuple(dict.fromkeys([*named(name), *ids_in_configs(folder, name, origin)]))

    both, about = [*named("bos"), *named("eos")], beside(ABOUT_NAME)
    if about.get("format") == "huggingface":
        eos_ids = about.get("eos_ids")
        return {
            "named": both,
            **{name: i if type(i := about.get(name)) is int else None for name in ("bos_id", "pad_id")},
            "eos_ids": [i for i in eos_ids if type(i) is int] if isinstance(eos_ids, list) else [],
        }
    return {
        "named": both,
        "bos_id": next(iter(found("bos")), None),
        "eos_ids": found("eos"),
        "pad_id": next(iter(found("pad")), None),
    }


def ids_in_configs(folder: Path, name: str, origin: str) -> list[int]:
    """The ids that config.json and generation_config.json of a folder give for `name`: "eos",
    "bos" or "pad".
    """
    ids: list[Any] = []
    for part in ("config.json", "generation_config.json"):
        value = tree_of(folder / part, origin).get(f"{name}_token_id")
        ids += value if isinstance(value, list) else [value]
    return [i for i in ids if isinstance(i, int) and i >= 0]


def tree_of(path: Path, origin: str) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file or no object in it.

    Raises UserError for invalid JSON.
    """
    if not path.is_file():
        return {}
    tree = parse_json(inside(path.parent, path.name, origin).read_bytes(), f"{origin}: {path}")
    return tree if isinstance(tree, dict) else {}


def _backend(text: str, origin: str) -> Any:
    """The library's tokenizer of a tokenizer.json. Raises UserError if it can't be read."""
    import tokenizers

    with _library(f"{origin}: {JSON_NAME} can't be read by tokenizers {tokenizers.__version__}"):
        return tokenizers.Tokenizer.from_str(text)


@contextlib.contextmanager
def _library(problem: str) -> Iterator[None]:
    """A context that turns what the library raises into a UserError that begins with `problem`: plain
    exceptions, and its panics, which are none. A TypeError, of a text that is no Unicode, is let through.
    """
    try:
        yield
    except TypeError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{problem} ({error})") from error


def _without_vocabulary(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a tokenizer.json that `as_plain_text` changes."""
    model = {key: value for key, value in tree["model"].items() if key not in ("vocab", "merges")}
    return {**tree, "model": model}


def _steps(part: Any, name: str) -> list[Mapping[str, Any]]:
    """The steps of a decoder or a pre-tokenizer of a tokenizer.json, with nested sequences flattened. name:
    the key of a sequence's steps."""
    if not isinstance(part, dict):
        return []
    inner = part.get(name) if part.get("type") == "Sequence" else None
    return [step for one in inner for step in _steps(one, name)] if isinstance(inner, list) else [part]


def _replaced(step: Mapping[str, Any]) -> tuple[str, str]:
    """What a step of a decoder that replaces text looks for, and what it puts there. (Of a regular
    expression: nothing, so that bytes are off, which `text_changes` finds.)"""
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    pattern = step["pattern"]
    return (pattern if isinstance(pattern, str) else pattern.get("String", "")) or step["content"], step[
        "content"
    ]
