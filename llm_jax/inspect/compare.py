"""Compares two checkpoints: their weights, and their predictions on one text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.inspect.arguments import InspectArguments, split_step
from llm_jax.inspect.checkpoint_diff import WeightDifference, check_alike, weight_differences
from llm_jax.inspect.layer_by_layer import LayerByLayer
from llm_jax.inspect.logit_lens import Divergence, Predictions, Readout, divergence
from llm_jax.pretrained.model import OUTPUTS_NAN, PretrainedModel, open_model


@dataclass(frozen=True)
class Comparison:
    """Differences between this checkpoint and another."""

    other: str
    """Path of the other checkpoint, and its step if it is a run's."""
    weights: list[WeightDifference]
    predictions: Predictions
    """Predictions of the other checkpoint on the text."""
    divergence: Divergence
    """p is this checkpoint's, q the other's."""
    changed: list[int]
    """Positions at which the most likely next token differs."""


def compare(opened: PretrainedModel, arguments: InspectArguments, ids: np.ndarray) -> Comparison:
    """Opens the other checkpoint and compares. The weights of both are on the devices at a time. Raises
    UserError. ids: [T], of the text."""
    key, (run, step) = f"diff={arguments.diff}", split_step(arguments.diff)
    try:
        at = {"step": step} if step is not None else {}
        there = open_model(run, **{**arguments.model.options(), "adapter": None, "apart": False, **at})
    except UserError as error:
        raise UserError(f"{key}: {str(error).removeprefix(f'{run}: ')}") from error
    check_alike(opened, there, key)
    readouts = Readout(opened), Readout(there)
    streams = [last_stream(one, ids) for one in (opened, there)]
    targets = np.array([*ids[1:], 0], np.int32)
    predictions = [readout.predictions(x, targets) for readout, x in zip(readouts, streams, strict=True)]
    if np.isnan(predictions[1].entropy).any():
        raise UserError(f"{key}: {OUTPUTS_NAN}")
    changed = np.flatnonzero(predictions[0].top_ids[:, 0] != predictions[1].top_ids[:, 0]).tolist()
    name = run + (f" at step {there.step}" if there.step else "")
    return Comparison(
        name, weight_differences(opened, there), predictions[1], divergence(*readouts, *streams), changed
    )


def last_stream(opened: PretrainedModel, ids: np.ndarray) -> np.ndarray:
    """The residual stream x_TD after the last layer, for one text."""
    stream = None
    for layer in LayerByLayer(opened)(ids[None]):
        stream = layer.stream[0]
    assert stream is not None
    return stream
