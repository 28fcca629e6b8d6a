"""Makes preference pairs with a verifier: the right answer to a prompt, and a wrong one of a model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.core.errors import UserError
from llm_jax.data.held_out_prompts import HeldOutPrompt
from llm_jax.data.verify import expected_answer, verdict
from llm_jax.evaluate.answers import open_to_answer


class MadePairs(NamedTuple):
    """Pairs, and how often the model was right."""

    records: list[dict[str, Any]]
    prompts: int
    """Prompts whose answers can be verified."""
    right: int
    """Samples that are right."""
    samples: int

    def __str__(self) -> str:
        return (
            f"{self.right:,} of {self.samples:,} samples are right; {self.prompts:,} prompts, of which "
            f"{len(self.records):,} have a wrong answer and make a pair"
        )


def make_pairs(
    path: Path, changes: list[tuple[str, str]], count: int, samples: int, temperature: float, **options: Any
) -> MadePairs:
    """A pair for each of the first `count` held-out prompts to which a sample of the model is wrong: the
    record's right answer, and the most frequent wrong one.

    changes, options: of `open_to_answer`. Raises UserError where no record has a verifier.
    """
    answering = open_to_answer(path, changes, count, **options)
    verified = tuple(prompt for prompt in answering.prompts if prompt.record.get("verify"))
    if not verified:
        raise UserError(f'answers={count}: no record has a verifier ("verify": "exact")')
    texts = answering._replace(prompts=verified).texts(samples, temperature)
    records, right = [], 0
    for prompt, answers in zip(verified, texts, strict=True):
        right += sum(bool(verdict(prompt.record, text)) for text in answers)
        if record := pair(prompt, answers):
            records.append(record)
    return MadePairs(records, len(verified), right, len(verified) * samples)


def pair(prompt: HeldOutPrompt, answers: list[str]) -> dict[str, Any] | None:
    """A preference of the right answer to the most frequent wrong one; None where none is wrong.

    Empty answers don't count, nor do those with bytes that are no text.
    """
    wrong = Counter(
        text.strip()
        for text in answers
        if text.strip() and "\ufffd" not in text and verdict(prompt.record, text) is False
    )
    if not wrong:
        return None
    kept = {name: prompt.record[name] for name in ("task", "verify") if name in prompt.record}
    rejected, _ = wrong.most_common(1)[0]
    messages = [dict(message) for message in prompt.messages]
    return {"prompt": messages, "chosen": expected_answer(prompt.record), "rejected": rejected, **kept}


def write_pairs(path: Path, pairs: MadePairs) -> None:
    """Writes the pairs, an object a line. Raises UserError if there are none, or no file can be written."""
    if not pairs.records:
        raise UserError(f"pairs={path}: no sample is wrong. Take more samples, or harder prompts")
    try:
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in pairs.records))
    except OSError as error:
        raise UserError(f"pairs={path}: can't be written ({error.strerror})") from error
