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
from llm_jax.train.checkpoint import described
from llm_jax.train.state import TrainModel


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
        return read_arrays(folder / "state", program, str(folder)), tried
    raise UserError(f"{run_dir}: {problem}, and there is no other that is whole" if step is None else f"step={step}: {run_dir}: {problem}")


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
    compare(abstract, program, str(path))
    return folder.read(program)


def read_arrays(folder: Path, program: TrainModel, said: str) -> Any:
    """The parameters (or their average) among the arrays that Orbax wrote into a folder. Raises UserError for those of another model."""
    import orbax.checkpoint as ocp

    for library in ("absl", "asyncio"):  # Orbax tells its every move
        logging.getLogger(library).setLevel(logging.CRITICAL)
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        tree = reader.metadata(folder.absolute()).item_metadata.tree
        name = "average" if tree.get("average") else "parameters"
        compare(tree[name], program, said)
        mesh_wants = jax.tree.map(
            lambda w, sharding: ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding, dtype=w.dtype, global_shape=w.shape),
            program.abstract,
            program.shardings("stored"),
        )
        shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), program.abstract)
        asked = ocp.args.PyTreeRestore(item={name: shapes}, restore_args={name: mesh_wants}, partial_restore=True)
        return jax.block_until_ready(reader.restore(folder.absolute(), args=asked)[name])


def compare(tree: Any, program: TrainModel, said: str) -> None:
    """Raises UserError, naming the first difference, where arrays have other names or shapes than the program's weights."""
    shape = lambda text: text.partition(" ")[2]  # noqa: E731 (whatever the dtype)
    there = {name: shape(text) for name, text in described(tree).items()}
    here = {name: shape(text) for name, text in described(program.abstract).items()}
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            raise UserError(
                f"{said}: is of another model ({name} is {there.get(name, 'not there')}, and the configuration's is {here.get(name, 'not there')})"
            )
