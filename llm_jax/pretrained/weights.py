"""Reads the weights of a trained model, without a train state, onto any layout and in any dtype."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core import checksums
from llm_jax.core.config_tree import flat
from llm_jax.core.errors import UserError
from llm_jax.core.files import user_path
from llm_jax.experiment import Experiment
from llm_jax.huggingface.folder import Folder
from llm_jax.huggingface.gguf.header import is_gguf
from llm_jax.huggingface.peft import WEIGHTS, is_peft_folder
from llm_jax.huggingface.peft_config import NAME
from llm_jax.huggingface.transfer import flat_paths
from llm_jax.pretrained.adapter import base_of, in_float32, merge_folder
from llm_jax.pretrained.adapter_apart import adapter_arrays
from llm_jax.pretrained.source import (
    ModelSource,
    base_folder,
    check_sums,
    checkpoint_steps,
    open_source,
    weights_folder,
)
from llm_jax.train.checkpoint import described
from llm_jax.train.state import TrainModel, join, nested, pick


def read_weights(
    source: ModelSource, program: TrainModel, step: int | None, log: Callable[[str], None]
) -> tuple[Any, int]:
    """(parameters, step): nested dicts of arrays, placed as the model's layout stores them, in its parameter
    dtype.

    They are those of the checkpoint at `step` (None: the newest that is intact), or of the Hugging Face
    folder, with step 0. If the run kept a moving average of its weights, they are the average, as in
    evaluation. An adapter is merged into them, unless `program` has it too. `log` is called for each newer
    checkpoint that is damaged. Nothing in the folder is changed.

    Raises UserError if there are no weights, if the checkpoint at `step` is damaged or missing, or if the
    weights are those of another model.
    """
    if source.adapter is not None and source.base is not None:
        if program.adapted.changes:
            parameters, at = read_weights(source.base, program.plain, step, log)
            return beside(parameters, source.adapter, source.base, program), at
        wide = in_float32(program, source.base.experiment.model.tied_embeddings)
        parameters, at = read_weights(source.base, wide, step, log)
        base = base_of(source.base, wide.config)
        return merge_folder(source.adapter, base, wide, parameters, program), at
    path, steps = source.path, source.steps
    check_step(source, step)
    if source.folder is not None:
        return read_folder(source.folder, program), 0
    problem = ""
    for candidate in [step] if step is not None else reversed(steps):
        checkpoint = path / "checkpoints" / str(candidate)
        try:
            checksums.check(checkpoint)
        except checksums.Damaged as error:
            problem = f"checkpoint {candidate} is damaged ({error})"
            log(f"{path}: {problem}")
            continue
        return read_checkpoint(source.experiment, checkpoint, program, log), candidate
    if step is None:
        raise UserError(f"{path}: {problem}, and no other checkpoint is intact")
    raise UserError(f"step={step}: {path}: {problem}")


def check_step(source: ModelSource, step: int | None) -> None:
    """Raises UserError where a model has no weights, or none of this step; None: the newest."""
    path, steps = source.path, source.steps
    if source.folder is not None:
        if step:
            raise UserError(
                f"step={step}: {path} has no checkpoints, only loaded weights (step 0). Leave step= out"
            )
    elif not steps:
        raise UserError(f"{path}: has no checkpoint yet; let the run reach its first one (checkpoint.every)")
    elif step is not None and step not in steps:
        raise UserError(
            f"step={step}: {path} has no checkpoint of that step; there are {', '.join(map(str, steps))}"
        )


def read_checkpoint(
    experiment: Experiment, checkpoint: Path, program: TrainModel, log: Callable[[str], None]
) -> Any:
    """All parameters of a run: the trained ones from one of its checkpoints, the others as the run
    initialised them.
    """
    state = checkpoint / "state"
    if experiment.trains_everything:
        return read_arrays(state, program, str(checkpoint))
    if experiment.train.start_from:
        check_start_unchanged(experiment.train.start_from, recorded_frozen(checkpoint), str(checkpoint))
    apart = program.adapted.changes
    wide = experiment.adapter.rank and not apart
    config = dataclasses.replace(program.config, parameter_dtype="float32") if wide else program.config
    own = TrainModel(
        config, program.optimizer, program.place, 0.0, experiment.train.trainable, experiment.adapter
    )
    rest = initial_rest(experiment, own, log)
    whole = join(read_arrays(state, own, str(checkpoint), own.trained), rest)
    return merged(own, whole, program) if wide else whole


def merged(apart: TrainModel, parameters: Any, program: TrainModel) -> Any:
    """The parameters of a model with an adapter as those of `program`, which has none: added in float32, then
    cast."""

    def merge(parameters: Any) -> Any:
        whole = jax.tree.map(lambda w, like: w.astype(like.dtype), apart.merged(parameters), program.abstract)
        return program.reshard_to(whole, "stored")

    with jax.set_mesh(program.place.mesh):
        return program.jit(merge)(parameters)


START = "start"
"""The role, in a checkpoint's `frozen`, of the weights that a partly trained run started from."""


def recorded_frozen(checkpoint: Path) -> dict[str, Any]:
    """Role → path and sha256 of the frozen weights that a checkpoint was trained beside."""
    return json.loads((checkpoint / "info" / "metadata").read_text()).get("frozen", {})


def check_start_unchanged(start_from: str, recorded: Mapping[str, Any], where: str) -> None:
    """Raises UserError where the weights in `train.start_from`, of which a partly trained run keeps the
    untrained ones, are no longer those that it started from.
    """
    before = recorded.get(START, {}).get("sha256")
    if before != (now := weights_sha256(user_path(start_from))):
        raise UserError(
            f"train.start_from={start_from}: has other weights (sha256 {now[:12]}) than {where} was trained "
            f"beside ({str(before)[:12]}). Bring them back: only the parameters of train.trainable are in it."
        )


def initial_parameters(experiment: Experiment, model: TrainModel, log: Callable[[str], None]) -> Any:
    """The parameters that a run starts with: read from the folder of `train.start_from`, or drawn at random
    from its seed; its adapter is new, or that of `adapter.peft_folder`.
    """
    return _initial_parameters(experiment, model, log, model.adapted.config.peft_folder)


def initial_rest(experiment: Experiment, model: TrainModel, log: Callable[[str], None]) -> Any:
    """The initial parameters that a run doesn't train. An adapter is trained, so no folder of one is read: a
    run that has begun doesn't need it."""
    return model.rest(_initial_parameters(experiment, model, log, ""))


def _initial_parameters(
    experiment: Experiment, model: TrainModel, log: Callable[[str], None], adapter: str
) -> Any:
    path = experiment.train.start_from
    if not path:
        return model.new_parameters(experiment.train.seed)
    parameters = weights_of_start(experiment, path, model.plain, log)
    if not model.adapted.changes:
        return parameters
    if adapter:
        log(f"starting with the adapter of {adapter}")
        return beside(parameters, user_path(adapter), open_source(path), model)
    return with_new_adapter(parameters, experiment.train.seed, model)


def with_new_adapter(parameters: Any, seed: int, model: TrainModel) -> Any:
    """The parameters of a model with an adapter that is new, from the whole weights of its base. They are
    donated."""
    with jax.set_mesh(model.place.mesh):
        return model.jit(model.with_adapter, donate_argnums=0)(parameters, jnp.uint32(seed))


def beside(parameters: Any, adapter: Path, base: ModelSource, model: TrainModel) -> Any:
    """The parameters of a model with the adapter of a PEFT folder, from the whole weights of its base. They
    are donated."""
    arrays = adapter_arrays(adapter, base_of(base, model.config), flat_paths(parameters), model)
    return with_arrays(with_new_adapter(parameters, 0, model), arrays, model)


def with_arrays(parameters: Any, arrays: Mapping[str, np.ndarray], model: TrainModel) -> Any:
    """Parameters of a model with other values for some of its arrays, by name."""
    shardings, abstract = (flat(tree) for tree in (model.shardings("stored"), model.abstract))
    placed = {
        name: jax.device_put(value.astype(abstract[name].dtype), shardings[name])
        for name, value in arrays.items()
    }
    return nested({**flat(parameters), **placed})


def weights_of_start(experiment: Experiment, path: str, model: TrainModel, log: Callable[[str], None]) -> Any:
    """The whole weights in the folder that a run starts from, with rows for control tokens that it adds."""
    source = open_source(path)
    theirs = source.experiment.model
    changed: dict[str, Any] = {}
    if experiment.tokenizer.control and theirs.vocab and theirs.vocab < (model.config.vocab or 0):
        changed["vocab"] = theirs.vocab
    if theirs.outputs != model.config.outputs == "reward":
        changed["outputs"] = theirs.outputs
    there = TrainModel(dataclasses.replace(model.config, **changed), model.optimizer, model.place)
    parameters, step = read_weights(source, there if changed else model, None, log)
    if "outputs" in changed:
        parameters = with_reward_head(parameters, model)
        log("the head is a new one for rewards, and starts at 0")
    if "vocab" in changed:
        parameters = with_new_rows(parameters, model)
        log(f"vocabulary of {theirs.vocab:,} -> {model.config.vocab:,}: new rows are the mean of the others")
    log(f"starting with the weights of {path}, step {step}")
    return parameters


def with_reward_head(parameters: Any, model: TrainModel) -> Any:
    """Parameters of a language model, as those of `model`, a reward model: with a head of zeros in place of
    its own."""
    wanted = model.abstract_parameters()["head"]
    head = jax.device_put(jnp.zeros(wanted.shape, wanted.dtype), wanted.sharding)
    return join({"head": head}, {name: value for name, value in parameters.items() if name != "head"})


def with_new_rows(parameters: Any, model: TrainModel) -> Any:
    """Parameters of a model with a smaller vocabulary, as those of `model`: new rows of embedding and head
    are the mean of the others, so a new token is as likely as any and changes nothing else."""

    def extended(w: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        if w.shape == wanted.shape:
            return w
        axis = next(i for i, sizes in enumerate(zip(w.shape, wanted.shape, strict=True)) if len({*sizes}) > 1)
        whole = jax.sharding.reshard(w, jax.sharding.PartitionSpec())
        mean = jnp.mean(whole, axis, keepdims=True, dtype=jnp.float32).astype(w.dtype)
        return jnp.concatenate([whole, jnp.repeat(mean, wanted.shape[axis] - w.shape[axis], axis)], axis)

    def extend(parameters: Any) -> Any:
        return model.reshard_to(jax.tree.map(extended, parameters, model.abstract), "stored")

    with jax.set_mesh(model.place.mesh):
        return model.jit(extend)(parameters)


def read_folder(folder: Folder, program: TrainModel) -> Any:
    """The parameters in a Hugging Face folder.

    Raises UserError if its files are damaged, or are those of another model.
    """
    check_sums(folder.path)
    abstract = TrainModel(folder.model, program.optimizer, program.place).abstract
    compare(abstract, program.abstract, str(folder.path))
    return folder.read(program)


def read_arrays(folder: Path, program: TrainModel, where: str, names: frozenset[str] | None = None) -> Any:
    """The parameters with these names (None: all), or their average if there is one, from the arrays that
    Orbax wrote to a folder.

    Raises UserError, naming `where` first, if the arrays are those of another model.
    """
    import orbax.checkpoint as ocp  # takes a second: only where a checkpoint is read

    for library in ("absl", "asyncio"):  # Orbax logs every step
        logging.getLogger(library).setLevel(logging.CRITICAL)
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        tree = reader.metadata(folder.absolute()).item_metadata.tree
        name = "average" if tree.get("average") else "parameters"
        wanted = (
            program.abstract_parameters() if names is None else pick(program.abstract_parameters(), names)
        )
        compare(tree[name], wanted, where)
        placed = jax.tree.map(
            lambda w: ocp.ArrayRestoreArgs(
                restore_type=jax.Array, sharding=w.sharding, dtype=w.dtype, global_shape=w.shape
            ),
            wanted,
        )
        shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), wanted)
        restore = ocp.args.PyTreeRestore(
            item={name: shapes}, restore_args={name: placed}, partial_restore=True
        )
        return jax.block_until_ready(reader.restore(folder.absolute(), args=restore)[name])


def compare(found: Any, wanted: Any, where: str) -> None:
    """Raises UserError, naming the first difference, if arrays have other names or shapes than `wanted`.

    Dtypes may differ.
    """
    shapes = [
        {name: text.partition(" ")[2] for name, text in described(tree).items()} for tree in (found, wanted)
    ]
    for name in sorted({*shapes[0], *shapes[1]}):
        there, here = (tree.get(name, "not there") for tree in shapes)
        if there != here:
            raise UserError(
                f"{where}: is of another model ({name} is {there}, and the configuration's is {here})"
            )


def weights_sha256(folder: Path, step: int | None = None) -> str:
    """The sha256 over the weights that are read from a folder: of the checkpoint of a step, by default its
    newest, or of its safetensors files; of a PEFT folder, over its own and its base's; of a GGUF file.
    """
    if is_gguf(folder):
        return checksums.file_sum(folder)
    if is_peft_folder(folder):
        return with_adapter_sha256(weights_sha256(base_folder(folder)), folder)
    steps = checkpoint_steps(folder)
    newest = max(steps, default=0) if step is None else step
    weights = folder / "checkpoints" / str(newest) if steps else weights_folder(folder)
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


def with_adapter_sha256(base: str, adapter: Path) -> str:
    """The sha256 of a base with the adapter of a PEFT folder, from that of the base."""
    missing = [name for name in (NAME, WEIGHTS) if not (adapter / name).is_file()]
    if missing:
        raise UserError(f"{adapter}: has no {missing[0]}; bring the adapter's folder back")
    sums = "".join(checksums.file_sum(adapter / name) for name in (NAME, WEIGHTS))
    return hashlib.sha256((sums + base).encode()).hexdigest()
