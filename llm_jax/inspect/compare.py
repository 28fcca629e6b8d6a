"""Two checkpoints on one text: the weights between them, and where their predictions part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.inspect.arguments import InspectArguments
from llm_jax.inspect.checkpoint_diff import WeightDifference, check_alike, weight_differences
from llm_jax.inspect.layer_by_layer import Walk
from llm_jax.inspect.logit_lens import Divergence, Predictions, Readout, divergence
from llm_jax.pretrained.model import OUTPUTS_NAN, PretrainedModel, open_model


@dataclass(frozen=True)
class Comparison:
    """This checkpoint and another."""

    other: str
    """The other's path, and step where one was asked for."""
    weights: list[WeightDifference]
    predictions: Predictions
    """The other's, of the text."""
    divergence: Divergence
    """p is this one's, q the other's."""
    changed: list[int]
    """The positions at which the likeliest next token differs."""


def compare(opened: PretrainedModel, asked: InspectArguments, ids: np.ndarray) -> Comparison:
    """Opens the other checkpoint, too: both models' weights are on the devices for that long."""
    key = f"diff={asked.diff}" + (f"@{asked.diff_step}" if asked.diff_step is not None else "")
    try:
        at = {"step": asked.diff_step} if asked.diff_step is not None else {}
        there = open_model(asked.diff, **{**asked.opening, **at})
    except UserError as error:
        raise UserError(f"{key}: {str(error).removeprefix(f'{asked.diff}: ')}") from error
    check_alike(opened, there, key)
    readouts = Readout(opened), Readout(there)
    streams = [last_stream(one, ids) for one in (opened, there)]
    targets = np.array([*ids[1:], 0], np.int32)
    predictions = [readout.predictions(x, targets) for readout, x in zip(readouts, streams, strict=True)]
    if np.isnan(predictions[1].entropy).any():
        raise UserError(f"{key}: {OUTPUTS_NAN}")
    changed = np.flatnonzero(predictions[0].top_ids[:, 0] != predictions[1].top_ids[:, 0]).tolist()
    name = asked.diff + (f" at step {there.step}" if there.step else "")
    return Comparison(name, weight_differences(opened, there), predictions[1], divergence(*readouts, *streams), changed)


def last_stream(opened: PretrainedModel, ids: np.ndarray) -> np.ndarray:
    """x_TD after the last layer."""
    stream = None
    for layer in Walk(opened)(ids[None]):
        stream = layer.stream[0]
    assert stream is not None
    return stream
