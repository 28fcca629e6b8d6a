"""The weights of a run, without the rest of its state: from one of its checkpoints, onto any layout and mesh, in any dtype."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from llm_jax.errors import UserError
from llm_jax.train import checksums
from llm_jax.train.checkpoint import described
from llm_jax.train.state import Program


def steps_of(run_dir: Path) -> list[int]:
    """The steps that there are whole checkpoints of, in order."""
    return sorted(int(path.name) for path in (run_dir / "checkpoints").glob("*") if path.name.isdigit())


def read_weights(run_dir: Path, program: Program, step: int | None, say: Callable[[str], None]) -> tuple[Any, int]:
    """(parameters of a checkpoint, placed as the program stores them and in its parameter dtype; the step). Nothing in the folder is changed.

    Where the run kept a moving average of its weights, it is that, as in evaluation. `step`: None for the newest checkpoint that is whole;
    those after it that aren't are said. Raises UserError where there is none, or the one asked for is damaged or of another model.
    """
    steps = steps_of(run_dir)
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
            say(f"{run_dir}: {problem}")
            continue
        return read_arrays(folder / "state", program, str(folder)), tried
    raise UserError(f"{run_dir}: {problem}, and there is no other that is whole" if step is None else f"step={step}: {run_dir}: {problem}")


def read_arrays(folder: Path, program: Program, said: str) -> Any:
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


def compare(tree: Any, program: Program, said: str) -> None:
    """Raises UserError, naming the first difference, where arrays have other names or shapes than the program's weights."""
    shape = lambda text: text.partition(" ")[2]  # noqa: E731 (whatever the dtype)
    there = {name: shape(text) for name, text in described(tree).items()}
    here = {name: shape(text) for name, text in described(program.abstract).items()}
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            raise UserError(
                f"{said}: is of another model ({name} is {there.get(name, 'not there')}, and the configuration's is {here.get(name, 'not there')})"
            )
