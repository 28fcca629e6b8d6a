"""Next-token predictions read from the residual stream after any layer, by the final norm and the head.

After the last layer they are the model's predictions; after earlier ones, the logit lens (nostalgebraist
2020). Logits exist for a bounded number of positions at a time; a few numbers are kept of each position.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.arithmetic import round_up
from llm_jax.model.attention_context import length_multiple
from llm_jax.model.pipeline import STREAM
from llm_jax.pretrained.model import PretrainedModel

TOP = 10
"""Most likely tokens that are kept of a prediction."""
LOGITS_AT_ONCE = 1 << 26
"""Maximum entries of a logits array."""


class Predictions(NamedTuple):
    """Predictions at T positions. Probabilities are over the model's whole vocabulary."""

    top_ids: np.ndarray
    """int32 [T, 10]: the most likely next tokens, best first."""
    top_probabilities: np.ndarray
    """float32 [T, 10]: the probabilities of `top_ids`."""
    entropy: np.ndarray
    """float32 [T], nats: entropy of the prediction."""
    log_probability: np.ndarray
    """float32 [T], nats: log-probability of the actual next token; its negative is the loss."""
    rank: np.ndarray
    """int32 [T]: rank of the actual next token; 1 is the most likely."""


class Readout:
    """The final norm and head of a pretrained model, jitted once."""

    def __init__(self, opened: PretrainedModel):
        self.opened = opened
        place, vocab = opened.place, opened.config.vocab
        assert vocab is not None
        rows = place.size(place.axes("batch"))
        least = length_multiple(place)
        self.shape = rows, max(least, min(512, LOGITS_AT_ONCE // vocab // rows) // least * least)
        """(rows, positions of each) whose logits exist at a time; the rows are split over the devices that
        split the batch."""

    def predictions(self, x_TD: np.ndarray, targets_T: np.ndarray) -> Predictions:
        """Predictions at each position. x_TD: the stream before the final norm. targets_T: the actual next
        tokens; any id where there is none."""
        parts = [
            Predictions(*map(np.asarray, predictions_from_logits(self.logits(x), t)))
            for x, t in self.chunks(x_TD, targets_T)
        ]
        joined = (
            np.concatenate([p.reshape(-1, *p.shape[2:]) for p in column])
            for column in zip(*parts, strict=True)
        )
        return Predictions(*(column[: len(x_TD)] for column in joined))

    def all_logits(self, x_TD: np.ndarray) -> np.ndarray:
        """Logits, float32 [T, V], all at once: for short texts."""
        parts = [np.asarray(self.logits(x)) for x, _ in self.chunks(x_TD, np.zeros(len(x_TD), np.int32))]
        return np.concatenate([p.reshape(-1, p.shape[-1]) for p in parts])[: len(x_TD)]

    def chunks(self, x_TD: np.ndarray, targets_T: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Splits both into arrays of `shape`, the last one padded with zeros."""
        rows, length = self.shape
        length = min(length, round_up(-(-len(x_TD) // rows), length_multiple(self.opened.place)))
        room = round_up(len(x_TD), rows * length)
        x_TD = np.concatenate([x_TD, np.zeros((room - len(x_TD), x_TD.shape[1]), x_TD.dtype)])
        targets_T = np.concatenate([targets_T, np.zeros(room - len(targets_T), targets_T.dtype)]).astype(
            np.int32
        )
        return list(
            zip(
                x_TD.reshape(-1, rows, length, x_TD.shape[1]),
                targets_T.reshape(-1, rows, length),
                strict=True,
            )
        )

    def logits(self, x_BTD: np.ndarray) -> jax.Array:
        """Logits, float32 [B, T, V], replicated on every device."""
        place = self.opened.place
        with jax.set_mesh(place.mesh):
            return self.jitted(
                self.opened.parameters, jax.device_put(x_BTD, place.sharding(STREAM, "compute"))
            )

    @functools.cached_property
    def jitted(self) -> Any:
        """The jitted function (parameters, x_BTD) → logits_BTV, float32."""
        program = self.opened.program
        place = program.place

        def logits(parameters, x_BTD):
            model = program.model(parameters)
            return place.move(model.logits(model.finish(x_BTD)).astype(jnp.float32), (None, None, None))

        return program.jit(logits)


@jax.jit
def predictions_from_logits(logits_BTV: jax.Array, targets_BT: np.ndarray) -> tuple[jax.Array, ...]:
    """The fields of `Predictions`, [B, T, ...] each, from float32 logits and the actual next tokens."""
    log_BTV = jax.nn.log_softmax(logits_BTV)
    top, ids = jax.lax.top_k(log_BTV, min(TOP, log_BTV.shape[-1]))
    actual_BT1 = jnp.take_along_axis(log_BTV, targets_BT[..., None], -1)
    rank_BT = 1 + jnp.sum(log_BTV > actual_BT1, -1, dtype=jnp.int32)
    entropy_BT = -jnp.sum(jnp.exp(log_BTV) * log_BTV, -1)
    return (ids, jnp.exp(top), entropy_BT, actual_BT1[..., 0], rank_BT)


class Divergence(NamedTuple):
    """Differences between the predictions of two models at T positions; p are the first model's
    probabilities, q the second's."""

    kl: np.ndarray
    """float32 [T], nats: KL(p ‖ q), the sum of p ln(p / q)."""
    kl_back: np.ndarray
    """float32 [T], nats: KL(q ‖ p)."""
    largest: np.ndarray
    """float32 [T]: the largest difference of two logits."""


def divergence(first: Readout, second: Readout, x_TD: np.ndarray, y_TD: np.ndarray) -> Divergence:
    """The divergence of two models' predictions. x_TD, y_TD: their streams before the final norm."""
    none_T = np.zeros(len(x_TD), np.int32)
    pairs = zip(first.chunks(x_TD, none_T), second.chunks(y_TD, none_T), strict=True)
    parts = [
        divergence_from_logits(np.asarray(first.logits(x)), np.asarray(second.logits(y)))
        for (x, _), (y, _) in pairs
    ]
    return Divergence(
        *(
            np.concatenate([np.asarray(p).reshape(-1) for p in column])[: len(x_TD)]
            for column in zip(*parts, strict=True)
        )
    )


@jax.jit
def divergence_from_logits(
    first_BTV: jax.Array, second_BTV: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The fields of `Divergence`, [B, T] each, from the float32 logits of both models."""
    p, q = jax.nn.log_softmax(first_BTV), jax.nn.log_softmax(second_BTV)
    kl, back = jnp.sum(jnp.exp(p) * (p - q), -1), jnp.sum(jnp.exp(q) * (q - p), -1)
    return kl, back, jnp.max(jnp.abs(first_BTV - second_BTV), -1)
