"""The weights of a model, without the rest of a train state: of a run or a folder of Hugging Face's, onto any layout and mesh, in any dtype."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from llm_jax.core import checksums
from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment, read_experiment
from llm_jax.train.checkpoint import described
from llm_jax.train.config import EVERYTHING
from llm_jax.train.state import TrainModel, join, pick, trained_names


def steps_of(run_dir: Path) -> list[int]:
    """The steps that there are whole checkpoints of, in order."""
    return sorted(int(path.name) for path in (run_dir / "checkpoints").glob("*") if path.name.isdigit())


def read_weights(run_dir: Path, program: TrainModel, step: int | None, log: Callable[[str], None], leave_out: Sequence[str] = ()) -> tuple[Any, int]:
    """(parameters of a model, placed as the program stores them and in its parameter dtype; the step). Nothing in the folder is changed.

    run_dir: a run folder, one with the `weights` of a loaded model (step 0, until it has checkpoints), or a folder of Hugging Face's. Where
    the run kept a moving average of its weights, it is that, as in evaluation. `step`: None for the newest checkpoint that is whole; those
    after it that aren't are said. leave_out: names (* for anything) of a folder's tensors that need not be taken.
    Raises UserError where there is none, or the one asked for is damaged or of another model.
    """
    steps = steps_of(run_dir)
    if not steps and (folder := loaded_weights(run_dir)):
        if step:
            raise UserError(f"step={step}: {run_dir} has no checkpoints, only weights that were loaded (step 0)")
        return read_loaded(folder, program, leave_out), 0
    if not steps:
        raise UserError(f"{run_dir}: has no checkpoint yet; let the run come to one (checkpoint.every)")
    if step is not None and step not in steps:
        raise UserError(f"step={step}: {run_dir} has no checkpoint of that step; there are {', '.join(map(str, steps))}")
    problem = ""
    for tried in [step] if step is not None else reversed(steps):
        folder = run_dir / "checkpoints" / str(tried)
        try:
            checksums.check(folder)
        except checksums.Damaged as error:
            problem = f"checkpoint {tried} is damaged ({error})"
            log(f"{run_dir}: {problem}")
            continue
        return whole_weights(run_dir, folder / "state", program, log), tried
    raise UserError(f"{run_dir}: {problem}, and there is no other that is whole" if step is None else f"step={step}: {run_dir}: {problem}")


def whole_weights(run_dir: Path, state: Path, program: TrainModel, log: Callable[[str], None]) -> Any:
    """All parameters of a run, from the state in one of its checkpoints, which holds those that were trained, and from its start."""
    experiment = read_experiment(run_dir)
    if experiment.train.trainable == EVERYTHING:
        return read_arrays(state, program, str(state.parent))
    trained = trained_names(sorted(program.names), experiment.train.trainable)
    rest = pick(initial_parameters(experiment, program, log), program.names - trained)
    return join(read_arrays(state, program, str(state.parent), trained), rest)


def initial_parameters(experiment: Experiment, model: TrainModel, log: Callable[[str], None]) -> Any:
    """The parameters that a run starts with: read from the folder of `train.start_from`, or drawn at random from its seed."""
    path = experiment.train.start_from
    if not path:
        return model.new_parameters(experiment.train.seed)
    parameters, step = read_weights(Path(path).expanduser(), model, None, log)
    log(f"starting with the weights of {path}, step {step}")
    return parameters


def loaded_weights(path: Path) -> Path | None:
    """Where the weights of a loaded model are, in Hugging Face's format: in a run folder, or the folder itself. None where it has none."""
    from llm_jax.huggingface.folder import CONFIG, is_folder

    return path / "weights" if (path / "weights" / CONFIG).is_file() else path if is_folder(path) else None


def read_loaded(path: Path, program: TrainModel, leave_out: Sequence[str] = ()) -> Any:
    """The parameters in such a folder. Raises UserError for those of another model, or that are not what was written."""
    from llm_jax.huggingface.folder import open_folder

    if (path / checksums.NAME).is_file():
        try:
            checksums.check(path)
        except checksums.Damaged as error:
            raise UserError(f"{path}: is damaged ({error})") from error
    folder = open_folder(path, leave_out)
    abstract = TrainModel(folder.model, program.optimizer, program.place).abstract
    compare(abstract, program.abstract, str(path))
    return folder.read(program)


def read_arrays(folder: Path, program: TrainModel, said: str, names: frozenset[str] | None = None) -> Any:
    """The parameters (or their average) of these names (None: all) among the arrays that Orbax wrote into a folder. Raises UserError for those of another model."""
    import orbax.checkpoint as ocp

    for library in ("absl", "asyncio"):  # Orbax tells its every move
        logging.getLogger(library).setLevel(logging.CRITICAL)
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        tree = reader.metadata(folder.absolute()).item_metadata.tree
        name = "average" if tree.get("average") else "parameters"
        wanted = program.abstract_parameters() if names is None else pick(program.abstract_parameters(), names)
        compare(tree[name], wanted, said)
        placed = jax.tree.map(
            lambda w: ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=w.sharding, dtype=w.dtype, global_shape=w.shape), wanted
        )
        shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), wanted)
        asked = ocp.args.PyTreeRestore(item={name: shapes}, restore_args={name: placed}, partial_restore=True)
        return jax.block_until_ready(reader.restore(folder.absolute(), args=asked)[name])


def compare(tree: Any, wanted: Any, said: str) -> None:
    """Raises UserError, naming the first difference, where arrays have other names or shapes than those that are wanted."""
    shape = lambda text: text.partition(" ")[2]  # noqa: E731 (whatever the dtype)
    there = {name: shape(text) for name, text in described(tree).items()}
    here = {name: shape(text) for name, text in described(wanted).items()}
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            raise UserError(
                f"{said}: is of another model ({name} is {there.get(name, 'not there')}, and the configuration's is {here.get(name, 'not there')})"
            )
