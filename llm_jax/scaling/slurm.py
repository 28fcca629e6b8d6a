"""A grid as an array of Slurm jobs and a job that waits for them: the scripts, and the commands that submit them."""

from __future__ import annotations

import shlex
import string
import sys
from pathlib import Path

from llm_jax.errors import UserError
from llm_jax.scaling.grid import Grid, Point, folder_of
from llm_jax.train.run_folder import make_folder

SCRIPTS = ("slurm_array.sh", "slurm_conclude.sh")


def write_scripts(grid: Grid, chosen: list[Point], arguments: list[str]) -> list[str]:
    """Writes both scripts into the grid's folder and returns the two commands that submit them.

    `arguments` are the command line's own. Not in the array are held-out points, which the waiting job foretells first, and branches,
    which need their trunk's checkpoint.
    """
    numbers = [point.number for point in chosen if not point.held_out and not point.error and not point.inherited]
    if not numbers:
        raise UserError("grid.executor=slurm: there is no point to run")
    folder = Path(folder_of(grid.base))
    make_folder(folder / "slurm")
    own = [a for a in arguments if not a.startswith(("grid.executor=", "grid.points=", "--"))]
    values = {
        "name": grid.base.name.replace("/", "-"),
        "array": ranges(numbers),
        "minutes": str(round(60 * grid.settings.job_hours)),
        "folder": str(folder),
        "python": shlex.quote(sys.executable),
        "arguments": shlex.join(own),
    }
    paths = []
    for script in SCRIPTS:
        text = string.Template((Path(__file__).parent / f"{script}.template").read_text()).substitute(values)
        paths.append(folder / script)
        paths[-1].write_text(text)
    return [f"job=$(sbatch --parsable {paths[0]})", f"sbatch --dependency=afterany:$job {paths[1]}"]


def ranges(numbers: list[int]) -> str:
    """Numbers as Slurm lists them.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
