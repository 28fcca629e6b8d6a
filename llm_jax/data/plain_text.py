"""Changes a tokenizer.json so that text stays text: none becomes a control token, and its ids aren't random.

The tree is the object in a tokenizer.json. `tokenizers` looks for added tokens in a text first, which
`encode_special_tokens` prevents; but the model itself has the names of control tokens and bytes as pieces.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""The name of a token that is a byte, in tokenizers with byte fallback."""
Tree = dict[str, Any]


def as_plain_text(tree: Tree, control_ids: Collection[int]) -> Tree:
    """The tree with the tokens of `control_ids` as special tokens, names of control tokens cut, and without
    dropout."""
    return without_dropout(names_cut(with_special(tree, control_ids)))


def vocabulary(tree: Mapping[str, Any]) -> dict[str, int]:
    """The string of a token → its id, of the model and of the added tokens."""
    vocab = tree["model"].get("vocab", {})
    pieces = dict(vocab) if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    return pieces | {token["content"]: token["id"] for token in tree.get("added_tokens") or []}


def added_token(i: int, content: str) -> Tree:
    """The entry of a control token in `added_tokens`."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": content, **plain, "special": True}


def with_special(tree: Tree, control_ids: Collection[int]) -> Tree:
    """The tree with the tokens of some ids as special added tokens. A file may have its EOS only in the
    model's vocabulary, or as an added token that isn't special, which is found in text."""
    added = tree.get("added_tokens") or []
    known = {token["id"] for token in added}
    new = [
        added_token(i, name) for name, i in vocabulary(tree).items() if i in control_ids and i not in known
    ]
    if not new and all(token.get("special") for token in added if token["id"] in control_ids):
        return tree
    changed = [{**token, "special": True} if token["id"] in control_ids else token for token in added]
    return {**tree, "added_tokens": sorted([*changed, *new], key=lambda token: token["id"])}


def control_names(tree: Mapping[str, Any]) -> set[str]:
    """The pieces of the model that no text may become: special tokens, the unknown token, bytes."""
    model, added = tree["model"], tree.get("added_tokens") or []
    pieces = vocabulary({"model": model})
    names = {token["content"] for token in added if token.get("special")}
    if model.get("type") == "Unigram":
        unknown = model.get("unk_id")
        names |= {model["vocab"][unknown][0]} if unknown is not None else set()
    else:
        names |= {model.get("unk_token")}
    if model.get("byte_fallback"):
        names |= {piece for piece in pieces if BYTE.fullmatch(piece)}
    return names & pieces.keys()


def names_cut(tree: Tree) -> Tree:
    """The tree with a step of the pre-tokenizer that cuts the names of control tokens in a text in two, as
    far as the model would take them for these tokens.

    A name is cut at its first character that is in no other piece: every token ends there anyway, so the ids
    are those of a model that has no such names. If there is none, it is cut after its first character.
    """
    names = control_names(tree)
    reached = sorted(name for name in _reachable(tree["model"], names) if len(name) > 1)
    if not reached:
        return tree
    letters = set().union(*vocabulary({"model": tree["model"]}).keys() - names)
    ends: dict[str, list[str]] = {}  # the beginning of a name → what may follow
    for name in reached:
        at = max(1, next((i for i, letter in enumerate(name) if letter not in letters), 1))
        ends.setdefault(name[:at], []).append(name[at:])
    pattern = "|".join(f"{re.escape(name)}(?={'|'.join(map(re.escape, ends[name]))})" for name in ends)
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "MergedWithPrevious", "invert": False}
    before = tree.get("pre_tokenizer")
    if before == step or (before and step in before.get("pretokenizers", [])):
        return tree
    both = {"type": "Sequence", "pretokenizers": [before, step]} if before else step
    return {**tree, "pre_tokenizer": both}


def _reachable(model: Mapping[str, Any], names: set[str]) -> set[str]:
    """The names that the model may encode a text as.

    Unigram chooses the most likely pieces: never a name that is less likely than its characters one by one.
    BPE makes what merges make, and with `ignore_merges` any piece that is a whole word.
    """
    if not names:
        return set()
    if model.get("type") == "Unigram":
        score = dict(model["vocab"])
        return {
            name
            for name in names
            if not all(letter in score for letter in name)
            or sum(score[letter] for letter in name) <= score[name]
        }
    if model.get("ignore_merges"):
        return names
    merged = {"".join(pair.split(" ") if isinstance(pair, str) else pair) for pair in model.get("merges", [])}
    return names & merged


def dropout(tree: Mapping[str, Any]) -> float:
    """The probability with which BPE leaves out a merge, anew each time that a text is encoded."""
    return tree["model"].get("dropout") or 0.0


def without_dropout(tree: Tree) -> Tree:
    """The tree with dropout off: a text has the same ids in the corpus, in a prompt and in every run."""
    return {**tree, "model": {**tree["model"], "dropout": None}} if dropout(tree) else tree
