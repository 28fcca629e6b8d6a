"""A tokenizer as a folder that `transformers.AutoTokenizer` loads and tokenises the same with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_jax.core.errors import UserError
from llm_jax.core.files import write_atomic
from llm_jax.data.huggingface_tokenizer import HuggingFaceTokenizer
from llm_jax.data.sentencepiece_tokenizer import SPACE, SentencePieceTokenizer
from llm_jax.data.tokenizer import JSON_NAME, Tokenizer

BPE, UNIGRAM = 2, 1
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
"""As SentencePiece's model numbers them."""
NEVER = -1e6
"""unigram: the score of pieces that no text is cut into. (The least score of a piece is above -1e3.)"""


def export_tokenizer(tokenizer: Tokenizer, folder: Path | str) -> None:
    """Writes tokenizer.json and tokenizer_config.json (and what else came with it) into a folder.

    Files of Hugging Face's are written as they were. A SentencePiece model is converted: BPE to the same ids for any text of up to 65,536
    characters (longer ones are cut here into stretches, before they are encoded); unigram to the same ids but where two ways
    to cut a text are as likely up to rounding. Raises UserError for a SentencePiece model that does what tokenizer.json can't be made to do
    here: that normalises, or has pieces of the user's or none for bytes.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.save_files(folder)
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise TypeError(f"{type(tokenizer).__name__} is no tokenizer of ours")
    for name, tree in (JSON_NAME, converted(tokenizer)), ("tokenizer_config.json", tokenizer_config(tokenizer)):
        write_atomic(Path(folder) / name, json.dumps(tree, indent=1, ensure_ascii=False).encode() + b"\n")


def converted(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """tokenizer.json of a SentencePiece model.

    Its pieces have spaces where SentencePiece writes U+2581, and there is no normalizer: so that U+2581 itself, of which there is no piece,
    goes through byte pieces as it does here.
    """
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2
    model = protocol.ModelProto.FromString(tokenizer.model)
    check(model)
    pieces = [piece.piece.replace(SPACE, " ") if piece.type == NORMAL else piece.piece for piece in model.pieces]
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN)
    if model.trainer_spec.model_type == BPE:
        ranks = {pieces[i]: (-piece.score, i) for i, piece in enumerate(model.pieces) if piece.type == NORMAL}
        part: dict[str, Any] = {
            "type": "BPE",
            "unk_token": pieces[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges(ranks),
        }
    else:
        scores = [piece.score if piece.type == NORMAL else NEVER for piece in model.pieces]
        part = {"type": "Unigram", "unk_id": unknown, "byte_fallback": True, "vocab": list(zip(pieces, scores, strict=True))}
    bos, prefix = pieces[tokenizer.bos_id], model.normalizer_spec.add_dummy_prefix
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(i, pieces[i]) for i, piece in enumerate(model.pieces) if piece.type in (UNKNOWN, CONTROL)],
        "normalizer": {"type": "Prepend", "prepend": " "} if prefix else None,
        "pre_tokenizer": None,
        "post_processor": {  # as documents begin
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": bos, "type_id": 0}}, *({"Sequence": {"id": x, "type_id": i}} for i, x in enumerate("AB"))],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if prefix else [])]},
        "model": part,
    }


def check(model: Any) -> None:
    """Raises UserError for a SentencePiece model that encodes in a way that tokenizer.json isn't made for here."""
    normalizer, types = model.normalizer_spec, {piece.type for piece in model.pieces}
    wrong = {
        "is neither BPE nor unigram": model.trainer_spec.model_type not in (BPE, UNIGRAM),
        f"normalises text ({normalizer.name})": bool(normalizer.precompiled_charsmap),
        "drops spaces (remove_extra_whitespaces)": normalizer.remove_extra_whitespaces,
        "has pieces that are defined by the user, or not used": not types <= {NORMAL, UNKNOWN, CONTROL, BYTE},
        "has no pieces for bytes": BYTE not in types,
    }
    if said := [words for words, true in wrong.items() if true]:
        raise UserError(f"tokenizer: can't be written as {JSON_NAME} that tokenises the same: the SentencePiece model {' and '.join(said)}")


def merges(ranks: dict[str, Any]) -> list[tuple[str, str]]:
    """BPE's merges: every way to make a piece of two others, the pieces in the order in which SentencePiece prefers them.

    ranks: of the pieces, the lowest first.
    """
    found = []
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        pairs = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        found += [(rank, ranks[left], ranks[right], left, right) for left, right in pairs if left in ranks and right in ranks]
    return [(left, right) for *_, left, right in found]


def added(i: int, piece: str) -> dict[str, Any]:
    """A control piece."""
    return {"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def tokenizer_config(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """tokenizer_config.json. The class is the plain one: LlamaTokenizer would make another pipeline of the pieces than the file has."""
    pieces = tokenizer.pieces()
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": pieces[tokenizer.bos_id],
        "eos_token": pieces[tokenizer.eos_id],
        "pad_token": pieces[tokenizer.pad_id],
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # what looks like a control piece in a text is text, as here
    }
