"""Writes a tokenizer as files that `transformers.AutoTokenizer` loads, with equal tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.files import write_atomic
from llm_jax.data.chat_template import FILE as TEMPLATE
from llm_jax.data.huggingface_tokenizer import HuggingFaceTokenizer
from llm_jax.data.plain_text import added_token, names_cut
from llm_jax.data.sentencepiece_tokenizer import SPACE, SentencePieceTokenizer
from llm_jax.data.tokenizer import JSON_NAME, Tokenizer

BPE, UNIGRAM = 2, 1
"""Types of models, as SentencePiece's `trainer_spec.model_type` numbers them."""
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
"""Types of pieces, as SentencePiece's model numbers them."""
UNUSED_SCORE = -1e6
"""Unigram: the score of pieces that no text may be encoded as. (The lowest score of other pieces is above
-1e3.)
"""


def export_tokenizer(tokenizer: Tokenizer, folder: Path | str, chat_template: str | None = None) -> None:
    """Writes tokenizer.json, tokenizer_config.json and, where it is given, the chat template into a folder.

    The files of a Hugging Face tokenizer are written unchanged. A SentencePiece model is converted. BPE gives
    the same ids for texts of up to 65,536 characters (longer texts are encoded in chunks by
    SentencePieceTokenizer). Unigram gives the same ids unless two segmentations of a text are equally likely
    up to rounding. Raises UserError for a SentencePiece model that normalises, has user-defined pieces, or
    lacks pieces for bytes: those are not converted.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.save_files(folder)
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise TypeError(f"{type(tokenizer).__name__} is no tokenizer class of llm_jax.data")
    trees = {JSON_NAME: tokenizer_json(tokenizer), "tokenizer_config.json": tokenizer_config(tokenizer)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    if chat_template is not None:
        write_atomic(Path(folder) / TEMPLATE, chat_template)
        del trees["tokenizer_config.json"]["split_special_tokens"]  # else the template's tokens would be text
    for name, tree in trees.items():
        write_atomic(Path(folder) / name, json.dumps(tree, indent=1, ensure_ascii=False).encode() + b"\n")


def tokenizer_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The object of tokenizer.json for a SentencePiece model.

    Its pieces have spaces where SentencePiece's have U+2581, and there is no normalizer. So U+2581 itself,
    for which there is no piece, is encoded as bytes, as SentencePieceTokenizer does.
    """
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2
    model = protocol.ModelProto.FromString(tokenizer.model)
    check_convertible(model)
    pieces = [
        piece.piece.replace(SPACE, " ") if piece.type == NORMAL else piece.piece for piece in model.pieces
    ]
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN)
    if model.trainer_spec.model_type == BPE:
        ranks = {pieces[i]: (-piece.score, i) for i, piece in enumerate(model.pieces) if piece.type == NORMAL}
        tokens: dict[str, Any] = {
            "type": "BPE",
            "unk_token": pieces[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges(ranks),
        }
    else:
        scores = [piece.score if piece.type == NORMAL else UNUSED_SCORE for piece in model.pieces]
        tokens = {
            "type": "Unigram",
            "unk_id": unknown,
            "byte_fallback": True,
            "vocab": list(zip(pieces, scores, strict=True)),
        }
    bos, prefix = pieces[tokenizer.bos_id], model.normalizer_spec.add_dummy_prefix
    normalizers: list[dict[str, Any]] = [{"type": "Prepend", "prepend": " "}] if prefix else []
    if " " not in pieces:  # SentencePiece takes a space for U+2581 then, and encodes the bytes of that
        normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    tree = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(i, pieces[i])
            for i, piece in enumerate(model.pieces)
            if piece.type in (UNKNOWN, CONTROL)
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": None,
        "post_processor": {  # BOS, with which documents begin
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                *({"Sequence": {"id": x, "type_id": i}} for i, x in enumerate("AB")),
            ],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if prefix else [])],
        },
        "model": tokens,
    }
    return names_cut(tree)


def check_convertible(model: Any) -> None:
    """Raises UserError for a SentencePiece model that `tokenizer_json` can't convert."""
    normalizer, types = model.normalizer_spec, {piece.type for piece in model.pieces}
    problems = {
        "is neither BPE nor unigram": model.trainer_spec.model_type not in (BPE, UNIGRAM),
        f"normalises text ({normalizer.name})": bool(normalizer.precompiled_charsmap),
        "drops spaces (remove_extra_whitespaces)": normalizer.remove_extra_whitespaces,
        "has user-defined or unused pieces": not types <= {NORMAL, UNKNOWN, CONTROL, BYTE},
        "has no pieces for bytes": BYTE not in types,
    }
    if found := " and ".join(problem for problem, true in problems.items() if true):
        raise UserError(
            f"tokenizer: no {JSON_NAME} would give the same tokens, because the SentencePiece model {found}"
        )


def merges(ranks: dict[str, Any]) -> list[tuple[str, str]]:
    """BPE's merges: all pairs of pieces that form a piece, in the order in which SentencePiece prefers their
    results.

    `ranks` orders the pieces, the preferred lowest.
    """
    found = []
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        pairs = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        found += [
            (rank, ranks[left], ranks[right], left, right)
            for left, right in pairs
            if left in ranks and right in ranks
        ]
    return [(left, right) for *_, left, right in found]


def tokenizer_config(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The object of tokenizer_config.json.

    It names the generic class: LlamaTokenizer would replace the file's pipeline by its own.
    """
    pieces = tokenizer.vocabulary()
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": pieces[tokenizer.bos_id],
        "eos_token": pieces[tokenizer.eos_id],
        "pad_token": pieces[tokenizer.pad_id],
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # so a control token's name in a text is text
    }
