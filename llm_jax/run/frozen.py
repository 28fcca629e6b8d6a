"""Frozen parameters of a run: those of its model that are not trained, and the frozen models of its
objective.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_jax.core import checksums
from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment
from llm_jax.pretrained.source import checkpoint_steps, open_source, weights_folder
from llm_jax.pretrained.weights import initial_parameters, read_weights
from llm_jax.train.state import Frozen, TrainModel

OWN_START = ""
"""The folder of a frozen model that is the run's own initial weights."""


def frozen_models(experiment: Experiment, model: TrainModel) -> dict[str, TrainModel]:
    """The models of the objective's frozen roles, placed by the run's layout.

    Raises UserError where a folder has none that fits.

    experiment: with its vocabulary.
    """
    found = {}
    for role, folder in experiment.objective.frozen().items():
        config = experiment.model
        if folder != OWN_START:
            config = open_source(folder).experiment.model.resolved(experiment.model.vocab)
            if config.vocab != experiment.model.vocab:
                raise UserError(
                    f"objective.{role}={folder}: has a vocabulary of {config.vocab} tokens, and the "
                    "trained model one of "
                    f"{experiment.model.vocab}; both must have the same tokenizer"
                )
            config = dataclasses.replace(
                config,
                attention=experiment.model.attention,
                max_segments=experiment.model.max_segments,
                parameter_dtype=experiment.model.parameter_dtype,
                compute_dtype=experiment.model.compute_dtype,
                scan_layers=experiment.model.scan_layers,
            )
        found[role] = TrainModel(config, experiment.optimizer, model.place)
    return found


def read_frozen(
    experiment: Experiment, model: TrainModel, models: Mapping[str, TrainModel], log: Callable[[str], None]
) -> Frozen:
    """The frozen parameters on the devices: read from their folders, or initialised as the run's own were."""
    rest = {} if model.trained == model.names else model.rest(initial_parameters(experiment, model, silent))
    parameters = {}
    for role, folder in experiment.objective.frozen().items():
        if folder == OWN_START:
            parameters[role] = initial_parameters(experiment, models[role], silent)
        else:
            parameters[role], step = read_weights(open_source(folder), models[role], None, log)
            log(f"frozen {role}: the weights of {folder}, step {step}")
    return Frozen(rest, parameters)


def frozen_identities(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Role → path and sha256 of each frozen model, as every checkpoint records them; both empty for weights
    drawn from the run's seed.
    """
    return {
        role: {"path": path, "sha256": weights_sha256(Path(path).expanduser()) if path else ""}
        for role, folder in experiment.objective.frozen().items()
        for path in [folder or experiment.train.start_from]
    }


def check_frozen(recorded: Mapping[str, Mapping[str, Any]], experiment: Experiment) -> None:
    """Raises UserError where a checkpoint was trained beside other frozen models than the run has now."""
    for role, now in frozen_identities(experiment).items():
        before = recorded.get(role, {})
        if before.get("sha256") != now["sha256"]:
            raise UserError(
                f"objective.{role}={now['path']}: its weights are not those that this run was trained "
                "beside (sha256 "
                f"{str(now['sha256'])[:12]}, the checkpoint's is {str(before.get('sha256'))[:12]} of "
                f"{before.get('path')}); "
                "bring them back, or choose another run_dir"
            )


def weights_sha256(folder: Path) -> str:
    """The sha256 over the weights that are read from a folder: of its newest checkpoint, or of its
    safetensors files.
    """
    steps = checkpoint_steps(folder)
    weights = folder / "checkpoints" / str(max(steps)) if steps else weights_folder(folder)
    if weights is None:
        raise UserError(
            f"{folder}: has no weights; give a run folder, or one with a config.json and safetensors"
        )
    if (weights / checksums.NAME).is_file():
        return checksums.file_sum(weights / checksums.NAME)
    sums = "".join(
        f"{checksums.file_sum(path)}  {path.name}\n" for path in sorted(weights.glob("*.safetensors"))
    )
    return hashlib.sha256(sums.encode()).hexdigest()


def silent(line: str) -> None:
    """A log for what was logged before."""
