"""How byte-level BPE divides a text into words before it merges, by the names of `tokenizer.ggml.pre`.

The expressions are those of the models' own tokenizer.json files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """How a byte-level tokenizer divides a text."""

    pattern: str = ""
    """A regular expression of words; "": that of GPT-2, which the library has."""
    digits_apart: bool = False
    """Whether each digit is a word by itself first."""
    ignore_merges: bool = False
    """Whether a word that is a token is that token, whatever merges would make of it."""
    composed: bool = False
    """Whether characters are composed (Unicode's NFC) first."""
    adds_bos: bool = False
    """Whether BOS is put before a text where the file doesn't say."""

    def steps(self) -> list[dict[str, Any]]:
        """The steps of the pre-tokenizer in a tokenizer.json."""
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        steps: list[dict[str, Any]] = (
            [{"type": "Digits", "individual_digits": True}] if self.digits_apart else []
        )
        if self.pattern:
            split = {
                "type": "Split",
                "pattern": {"Regex": self.pattern},
                "behavior": "Isolated",
                "invert": False,
            }
            steps.append(split)
        return [*steps, {**byte_level, "use_regex": not self.pattern}]


PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(),
    "smollm": PreTokenizer(digits_apart=True),
    "qwen2": PreTokenizer(QWEN2, composed=True),
    "deepseek-r1-qwen": PreTokenizer(QWEN2),
    "tekken": PreTokenizer(TEKKEN, ignore_merges=True),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3"), PreTokenizer(LLAMA3, ignore_merges=True, adds_bos=True)
    ),
}
"""By the names of `tokenizer.ggml.pre`."""
