"""Scores texts and conversations with a reward model."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax.core.arithmetic import round_up
from llm_jax.core.errors import UserError
from llm_jax.core.files import json_line, text_of, write_atomic
from llm_jax.data import TokenizerConfig
from llm_jax.data.chat_encoder import encode_plain, write
from llm_jax.data.chat_template import ChatTemplate, copy_of_template, find_template
from llm_jax.data.conversation import read_example
from llm_jax.layout.layout import Layout
from llm_jax.model.attention_context import length_multiple
from llm_jax.objective.logprobs import hidden_states
from llm_jax.objective.protocol import Objective
from llm_jax.objective.ranking import tied
from llm_jax.objective.reward import rewards
from llm_jax.pretrained.model import PretrainedModel, check_text_ids, open_model
from llm_jax.pretrained.source import tokenizer_folder
from llm_jax.train.loader import on_devices

SMALLEST = 32
"""The shortest rows; longer ones are powers of two, so that few programs are compiled."""
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Rewards:
    """The rewards of the records of a file."""

    path: str
    step: int
    records: list[dict[str, Any]]
    """Each record with its `reward`, or with `chosen_reward` and `rejected_reward`."""

    @property
    def values(self) -> np.ndarray:
        """All rewards, float64."""
        names = ("reward", "chosen_reward", "rejected_reward")
        return np.array([record[name] for record in self.records for name in names if name in record])

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """(chosen, rejected) of each preference."""
        return [(r["chosen_reward"], r["rejected_reward"]) for r in self.records if "chosen_reward" in r]


def score_file(
    path: Path,
    file: Path,
    *,
    layout: Layout | None = None,
    mesh: dict[str, int] | None = None,
    dtype: str | None = None,
    step: int | None = None,
    adapter: Path | None = None,
    apart: bool = False,
) -> Rewards:
    """The rewards that a model gives to the records of a JSONL file: texts, conversations, answers to
    prompts, or preferences, whose two answers are scored both.

    layout, mesh, dtype, step, adapter, apart: as for `open_model`. Raises UserError.
    """
    records = list(read_records(file))
    opened = open_model(
        path, layout=layout, mesh=mesh, dtype=dtype, step=step, adapter=adapter, apart=apart, outputs="reward"
    )
    template: ChatTemplate | None = None
    texts: list[np.ndarray] = []
    names: list[tuple[int, str]] = []
    for number, record in enumerate(records):
        try:
            if not isinstance(record.get("text"), str):
                template = template or template_of(opened)
            found = tokens_of(record, template, opened)
        except UserError as error:
            raise UserError(f"rewards={file}: line {number + 1}: {error}") from error
        for name, ids in found.items():
            texts.append(ids)
            names.append((number, name))
    check_text_ids(np.concatenate(texts).tolist(), opened.config.vocab or 0, f"rewards={file}", path)
    made: list[dict[str, Any]] = [dict(record) for record in records]
    for (number, name), value in zip(names, scores(opened, texts), strict=True):
        made[number][name] = value
    return Rewards(str(path), opened.step, made)


def read_records(file: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSONL file. Raises UserError for what isn't one, and where there is none."""
    try:
        lines = text_of(file.read_bytes(), f"rewards={file}").splitlines()
    except OSError as error:
        raise UserError(f"rewards={file}: can't be read ({error.strerror})") from error
    if not any(line.strip() for line in lines):
        raise UserError(f"rewards={file}: is empty; must have an object a line")
    for number, line in enumerate(lines, 1):
        try:
            record = json_line(line, file)
        except ValueError as error:
            raise UserError(f"rewards={file}: line {number} is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f'rewards={file}: line {number} is no object; must be like {{"text": "..."}}')
        yield record


def template_of(opened: PretrainedModel) -> ChatTemplate:
    """The chat template that the model was trained with. Raises UserError where there is none."""
    folder = tokenizer_folder(opened.path)
    name = copy_of_template(opened.experiment.chat.template, folder)
    return find_template(name, TokenizerConfig(file=str(folder)))


def tokens_of(
    record: Mapping[str, Any], template: ChatTemplate | None, opened: PretrainedModel
) -> dict[str, np.ndarray]:
    """Name of a reward → the tokens that it is of, as in training. Raises UserError for a record without an
    answer."""
    tokenizer = opened.tokenizer
    if isinstance(record.get("text"), str):
        ids = [tokenizer.bos_id, *tokenizer.encode(record["text"]), tokenizer.eos_id]
        return {"reward": np.array(ids, np.int64)}
    assert template is not None
    example = read_example(json.dumps(record))
    if not example.answers:
        raise UserError("has no answer to score; must have text, messages, or prompt and completion")
    kinds = ("chosen_reward", "rejected_reward") if len(example.answers) == 2 else ("reward",)
    found = {}
    for name, answer in zip(kinds, example.answers, strict=True):
        written = write(template, (*example.prompt, *answer), example.tools, tokenizer)[-1]
        found[name] = encode_plain(written.text, tokenizer)[0]
    return found


def scores(opened: PretrainedModel, texts: Sequence[np.ndarray]) -> list[float]:
    """The reward of each text of token ids, in order. Raises UserError for one that is too long for the
    model."""
    found = [0.0] * len(texts)
    place, config = opened.place, opened.config
    compiled = opened.program.jit(program(opened))
    for length, numbers in by_length(texts, length_multiple(place)).items():
        if config.position == "learned" and length > config.positions:
            longest = max(len(texts[number]) for number in numbers)
            if longest > config.positions:
                raise UserError(
                    f"rewards=: a text has {longest:,} tokens, and the model {config.positions:,} positions"
                )
            length = config.positions
        rows = round_up(max(1, TOKENS_AT_ONCE // length), place.size(place.axes("batch")))
        for first in range(0, len(numbers), rows):
            some = numbers[first : first + rows]
            batch, last_B = padded([texts[number] for number in some], rows, length)
            with jax.set_mesh(place.mesh):
                rewards_BT = np.asarray(compiled(opened.parameters, on_devices(batch, Objective(), place)))
            for number, value in zip(some, rewards_BT[np.arange(len(some)), last_B], strict=True):
                found[number] = float(value)
    return found


def program(opened: PretrainedModel) -> Any:
    """The function from parameters and a batch to the reward of the tokens up to each position, [B, T]."""

    def run(parameters: Any, batch: Any) -> jax.Array:
        model = opened.program.model(parameters)
        return rewards(model, hidden_states(model, batch))

    return run


def by_length(texts: Sequence[np.ndarray], multiple: int) -> dict[int, list[int]]:
    """Length of rows → the numbers of the texts that are scored in such rows."""
    found: dict[int, list[int]] = {}
    for number, ids in enumerate(texts):
        length = round_up(max(SMALLEST, 1 << (len(ids) - 1).bit_length()), multiple)
        found.setdefault(length, []).append(number)
    return found


def padded(texts: Sequence[np.ndarray], rows: int, length: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(the arrays of a batch with a text a row, the last position of each text)."""
    tokens = np.zeros((rows, length), np.int32)
    segments = np.zeros((rows, length), np.int32)
    for row, ids in enumerate(texts):
        tokens[row, : len(ids)] = ids
        segments[row, : len(ids)] = 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    batch = {
        "tokens": tokens,
        "targets": np.zeros_like(tokens),
        "weights": segments.astype(np.float32),
        "segments": segments,
        "positions": positions,
    }
    return batch, np.array([len(ids) - 1 for ids in texts])


def write_rewards(out: Path, found: Rewards) -> None:
    """Writes the records with their rewards, an object a line."""
    write_atomic(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found.records))


def table(found: Rewards) -> str:
    """The rewards as lines for a terminal."""
    values = found.values
    spread = f"mean {values.mean():.4g}, from {values.min():.4g} to {values.max():.4g}"
    lines = {"model": f"{found.path}, step {found.step}", "rewards": f"{len(values):,}: {spread}"}
    if pairs := found.pairs:
        share = lambda of: sum(of(*pair) for pair in pairs) / len(pairs)  # noqa: E731
        lines["accuracy"] = (
            f"{share(operator.gt):.1%}{tied({'ties': share(operator.eq)})} of {len(pairs):,} pairs: the "
            "chosen answer has the larger reward"
        )
    return "\n".join(f"{name:<12}{value}" for name, value in lines.items())
