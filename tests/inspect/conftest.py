"""Small models with random weights, without a run folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax.experiment import Experiment
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.pretrained.model import PretrainedModel
from llm_jax.train.state import TrainModel

SMALL = ModelConfig(
    layers=2, embed=32, heads=4, kv_heads=2, head_dim=8, mlp=48, vocab=96, init_std=0.3
)  # large enough for predictions that differ


def opened_with(
    config: ModelConfig = SMALL,
    layout: str = "single",
    mesh: dict[str, int] | None = None,
    seed: int = 0,
    tokenizer: Any = None,
) -> PretrainedModel:
    """A model with random weights, norms and biases, placed by a layout."""
    experiment = Experiment(model=config.resolved(), layout=preset(layout), mesh=mesh or {})
    place = MeshPlacement(experiment.layout, make_mesh(experiment.layout, experiment.mesh))
    program = TrainModel(experiment.model, experiment.optimizer, place)
    random = np.random.default_rng(seed)
    values = jax.tree.map(
        lambda w: random.normal(0.6 if w.ndim < 3 else 0, 0.3, w.shape).astype(w.dtype), program.abstract
    )
    parameters = jax.tree.map(jax.device_put, values, program.shardings("stored"))
    return PretrainedModel(Path("random"), experiment, program, parameters, None, seed)


def logits_of(opened: PretrainedModel, tokens_BT: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of the model's ordinary forward pass."""
    place = opened.place
    with jax.set_mesh(place.mesh):
        tokens = jax.device_put(tokens_BT, place.sharding(("batch", "sequence"), "compute"))
        logits = jax.jit(lambda p, t: opened.program.model(p)(t))(opened.parameters, tokens)
        return np.asarray(logits.astype(np.float32))


def replaced(opened: PretrainedModel, change: Any) -> PretrainedModel:
    """The model with each weight replaced by change(path, array)."""

    def changed(path, w):
        return jax.device_put(change(jax.tree_util.keystr(path), np.asarray(w)), w.sharding)

    return dataclasses.replace(
        opened, parameters=jax.tree_util.tree_map_with_path(changed, opened.parameters)
    )
