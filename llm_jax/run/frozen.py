"""Frozen parameters of a run: those of its model that are not trained, and the frozen models of its
objective.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from llm_jax.core.checksums import file_sum
from llm_jax.core.errors import UserError
from llm_jax.core.files import user_path
from llm_jax.core.log import no_log
from llm_jax.data import Tokenizer
from llm_jax.experiment import Experiment
from llm_jax.layout.check import check_model
from llm_jax.model import transformer
from llm_jax.pretrained.model import check_outputs, read_tokenizer
from llm_jax.pretrained.source import open_source
from llm_jax.pretrained.weights import (
    START,
    initial_parameters,
    initial_rest,
    read_weights,
    weights_sha256,
    with_adapter_sha256,
)
from llm_jax.train.config import EVERYTHING
from llm_jax.train.state import Frozen, TrainModel

OWN_START = ""
"""The folder of a frozen model that is the run's own initial weights."""


def frozen_models(
    experiment: Experiment, model: TrainModel, tokenizer: Tokenizer | None = None
) -> dict[str, TrainModel]:
    """The models of the objective's frozen roles, placed by the run's layout.

    Raises UserError where a folder has none that fits.

    experiment: with its vocabulary. tokenizer: the run's; None where it isn't known.
    """
    roles = experiment.objective.frozen()
    return {role: role_model(experiment, model, role, folder, tokenizer) for role, folder in roles.items()}


def precomputed_models(
    experiment: Experiment, model: TrainModel, tokenizer: Tokenizer | None = None
) -> dict[str, TrainModel]:
    """The models of `Objective.precomputed`, as `frozen_models`."""
    roles = experiment.objective.precomputed()
    return {role: role_model(experiment, model, role, folder, tokenizer) for role, folder in roles.items()}


def role_model(
    experiment: Experiment, model: TrainModel, role: str, folder: str, tokenizer: Tokenizer | None
) -> TrainModel:
    """The model in a folder, or the run's own (`OWN_START`), as one beside the policy.

    Raises UserError where it doesn't fit.
    """
    config = experiment.model
    if folder != OWN_START:
        try:
            theirs = open_source(folder).experiment.model
        except UserError as error:  # it begins with the folder
            raise UserError(f"objective.{role}={error}") from error
        check_outputs(theirs.outputs, f"objective.{role}={folder}", "logits")
        config = theirs.resolved(experiment.model.vocab if theirs.vocab is None else None)
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
        check_same_tokenizer(role, folder, tokenizer)
        try:
            check_model(config, model.place)
            transformer.check(config, model.place, experiment.train.sequence_length)
        except UserError as error:
            raise UserError(f"objective.{role}={folder}: {error}") from error
    if folder == OWN_START:
        return own_start(experiment, model)
    return TrainModel(config, experiment.optimizer, model.place)


def own_start(experiment: Experiment, model: TrainModel) -> TrainModel:
    """The policy as the run started, as a frozen model. Its `trainable` part is what the policy changes and
    so must be kept twice; the rest is the policy's own (`Frozen.rest`).

    Where the adapter adds nothing at the start, it is switched off: no part of it is kept.
    """
    adapter = experiment.adapter if experiment.adapter.changes_at_start else experiment.adapter.off()
    patterns = model.patterns if model.patterns == EVERYTHING else sorted(model.trained & {*model.weights})
    return TrainModel(experiment.model, experiment.optimizer, model.place, 0.0, patterns, adapter)


def check_same_tokenizer(role: str, folder: str, tokenizer: Tokenizer | None) -> None:
    """Raises UserError where a frozen model has another tokenizer than the run: its ids mean other tokens."""
    theirs = read_tokenizer(user_path(folder), no_log)
    if tokenizer and theirs and theirs.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"objective.{role}={folder}: has another tokenizer than the run. Use tokenizer.file={folder}, "
            "or another model"
        )


def read_frozen(
    experiment: Experiment,
    model: TrainModel,
    models: Mapping[str, TrainModel],
    log: Callable[[str], None],
    rest: Any = None,
) -> Frozen:
    """The frozen parameters on the devices: read from their folders, or initialised as the run's own were.

    rest: `Frozen.rest`, where it has been read already.
    """
    if rest is None:
        rest = {} if model.trained == model.names else initial_rest(experiment, model, no_log)
    parameters = {}
    for role in experiment.objective.frozen():
        own = models[role]
        parameters[role] = own.trainable(read_role(experiment, role, own, log)) if own.trained else {}
    return Frozen(rest, parameters)


def read_role(experiment: Experiment, role: str, model: TrainModel, log: Callable[[str], None]) -> Any:
    """The parameters of a model beside the policy, on the devices: read from its folder, or initialised as
    the run's own were."""
    folder = {**experiment.objective.frozen(), **experiment.objective.precomputed()}[role]
    if folder == OWN_START:
        return initial_parameters(experiment, model, no_log)
    parameters, step = read_weights(open_source(folder), model, None, log)
    log(f"frozen {role}: the weights of {folder}, step {step}")
    return parameters


def frozen_identities(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Role → path and sha256 of each frozen or precomputed model, and of each file that the objective reads,
    as every checkpoint records them; both empty for weights drawn from the run's seed.
    """
    start = experiment.train.start_from
    roles = {**experiment.objective.frozen(), **experiment.objective.precomputed()}
    folders = {role: folder or start for role, folder in roles.items()}
    if start and not experiment.trains_everything:
        folders[START] = start
    sums = {path: weights_sha256(user_path(path)) if path else "" for path in {*folders.values()}}
    own, adapter = sums.get(start, ""), experiment.adapter.peft_folder
    if adapter and OWN_START in roles.values():
        own = with_adapter_sha256(own, user_path(adapter))
    return {
        **{
            role: {"path": path, "sha256": own if roles.get(role) == OWN_START else sums[path]}
            for role, path in folders.items()
        },
        **{
            key: {"path": path, "sha256": file_sum(user_path(path))}
            for key, path in experiment.objective.files().items()
        },
    }


def check_frozen(
    recorded: Mapping[str, Mapping[str, Any]], identities: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raises UserError where a checkpoint was trained beside other frozen weights than those of now.

    recorded: of the checkpoint, identities: `frozen_identities` of now.
    """
    for role, now in identities.items():
        before = recorded.get(role, {})
        if before.get("sha256") != now["sha256"]:
            key = "train.start_from" if role == START else f"objective.{role}"
            is_file = user_path(now["path"]).is_file()
            differs = "its content is not what" if is_file else "its weights are not those that"
            raise UserError(
                f"{key}={now['path']}: {differs} this run was trained beside (sha256 "
                f"{str(now['sha256'])[:12]}, the checkpoint's is {str(before.get('sha256'))[:12]} of "
                f"{before.get('path')}). Bring them back, or choose another run_dir"
            )
