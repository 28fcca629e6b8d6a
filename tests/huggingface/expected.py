"""The logits that transformers computes with the models of `fixtures`, as one batch per model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(folder.name for folder in FIXTURES.iterdir())
TOLERANCE = 1e-4
"""Absolute, of float32 logits with a standard deviation of 1 to 6: transformers' own differ by up to 5e-5
from those in float64.
"""
ROWS = 12
"""So that four devices can share them."""


@dataclass(frozen=True)
class Batch:
    """Rows of several kinds, all padded on the right to the same length; padding has segment 0."""

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    segments_BT: np.ndarray
    logits_BTV: np.ndarray
    """The logits of transformers, valid where `known_BT`."""
    known_BT: np.ndarray
    rows: dict[str, slice]
    """Kind of rows (full, left, right, packed, greedy) → the rows of that kind."""
    new: np.ndarray
    """Tokens of the greedy continuation, [2, N]; the first follows the place `prompt` - 1 of its row."""
    prompt: int


def read(file: Path) -> Batch:
    """The batch of an expected.npz (tools/make_huggingface_fixtures.py describes it)."""
    e = np.load(file)
    new, prompt = e["left_greedy_new_tokens"], e["left_input_ids"].shape[1]
    ones = np.ones_like(e["full_input_ids"])
    after = e["left_position_ids"][:, -1:] + 1 + np.arange(new.shape[1] - 1)
    kinds = {
        "full": (e["full_input_ids"], np.cumsum(ones, 1) - 1, ones, e["full_logits"]),
        "left": (e["left_input_ids"], e["left_position_ids"], e["left_mask"], e["left_logits"]),
        "right": (e["right_input_ids"], e["right_position_ids"], e["right_mask"], e["right_logits"]),
        "packed": (e["packed_input_ids"], e["packed_position_ids"], e["packed_segment_ids"] + 1 - e["packed_segment_ids"].min(), e["packed_logits"]),
        "greedy": (
            np.concatenate([e["left_input_ids"], new[:, :-1]], 1),
            np.concatenate([e["left_position_ids"], after], 1),
            np.concatenate([e["left_mask"], np.ones_like(after)], 1), None,
        ),
    }  # fmt: skip
    T = max(tokens.shape[1] for tokens, *_ in kinds.values())
    tokens_BT, positions_BT, segments_BT, known_BT = (np.zeros((ROWS, T), np.int32) for _ in range(4))
    logits_BTV = np.zeros((ROWS, T, e["full_logits"].shape[-1]), np.float32)
    rows, row = {}, 0
    for kind, (tokens, positions, segments, logits) in kinds.items():
        rows[kind] = slice(row, row + len(tokens))
        at = (rows[kind], slice(0, tokens.shape[1]))
        tokens_BT[at], positions_BT[at], segments_BT[at] = tokens, positions, segments
        if logits is not None:
            logits_BTV[at], known_BT[at] = logits, segments > 0
        row += len(tokens)
    return Batch(tokens_BT, positions_BT, segments_BT, logits_BTV, known_BT > 0, rows, new, prompt)


def run(model, batch: Batch) -> np.ndarray:
    """The model's logits of all rows, on the devices that it is on."""
    from flax import nnx

    place = model.place
    inputs = [jnp.asarray(a) for a in (batch.tokens_BT, batch.positions_BT, batch.segments_BT)]
    graph, state = nnx.split(model)
    forward = jax.jit(
        lambda state, tokens, positions, segments: nnx.merge(graph, state)(tokens, positions, segments)
    )
    if getattr(place, "mesh", None) is None:
        return np.asarray(forward(state, *inputs))
    with jax.set_mesh(place.mesh):
        inputs = [jax.device_put(a, place.sharding(("batch", None), "compute")) for a in inputs]
        return np.asarray(forward(state, *inputs))


def furthest(batch: Batch, logits_BTV: np.ndarray, *kinds: str) -> float:
    """The largest difference from the logits of transformers in rows of these kinds."""
    rows = np.concatenate([np.arange(ROWS)[batch.rows[kind]] for kind in kinds])
    known = batch.known_BT[rows]
    assert known.any()
    return float(np.abs(logits_BTV[rows][known] - batch.logits_BTV[rows][known]).max())


def continues(batch: Batch, logits_BTV: np.ndarray) -> np.ndarray:
    """The model's own most likely token at each place of the greedy continuation, given the tokens before it:
    [2, N].
    """
    return logits_BTV[batch.rows["greedy"], batch.prompt - 1 : batch.prompt - 1 + batch.new.shape[1]].argmax(
        -1
    )
