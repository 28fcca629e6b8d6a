"""Shared prefixes of runs (grids with trunks=True): one long run serves many training budgets.

With the schedule warm-up-stable-decay, runs that differ only in train.steps are identical until the shorter
one's decay begins (Hu et al. 2024, MiniCPM; Hägele et al. 2024). The longest run, the trunk, keeps its
checkpoints at those steps, and the others, its branches, start from copies of them. Batches are a function of
the step alone, so a branch equals the run trained from scratch, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from llm_jax.core.errors import UserError
from llm_jax.core.files import new_folder, read_json_lines, write_atomic
from llm_jax.experiment import Experiment
from llm_jax.run.run_folder import configuration_hash
from llm_jax.scaling.grid import Point
from llm_jax.train.optimizer import decay_begins


def group_by_trunk(points: list[Point]) -> list[list[Point]]:
    """Groups of at least two points that differ only in train.steps: the trunk first, then its branches by
    falling length.

    Raises UserError for a point with rollbacks: its branches would not be what they are when trained from
    scratch.
    """
    by_hash: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        if point.experiment and not point.held_out:
            if spike := point.experiment.train.rollback.spike:
                raise UserError(
                    f"train.rollback.spike={spike:g}: a trunk that was rolled back differs from runs "
                    "trained from scratch. "
                    "Use 0, or a grid without trunks."
                )
            train = dataclasses.replace(point.experiment.train, steps=1)
            by_hash[configuration_hash(dataclasses.replace(point.experiment, train=train))].append(point)
    return [sorted(group, key=lambda p: -steps(p)) for group in by_hash.values() if len(group) > 1]


def with_trunks(points: list[Point]) -> list[Point]:
    """The points with every trunk first; trunks keep the checkpoints of their branches, branches count the
    FLOPs they inherit."""
    trunks: dict[str, Point] = {}
    inherited: dict[str, float] = {}
    for trunk, *branches in group_by_trunk(points):
        inherited |= {
            b.hash: b.cost * branching_step(b.experiment) / b.experiment.train.steps
            for b in branches
            if b.experiment
        }
        also = tuple(
            sorted(
                {
                    branching_step(b.experiment)
                    for b in branches
                    if b.experiment and branching_step(b.experiment)
                }
            )
        )
        assert trunk.experiment
        checkpoint = dataclasses.replace(trunk.experiment.checkpoint, also=also)
        trunks[trunk.hash] = dataclasses.replace(
            trunk, experiment=dataclasses.replace(trunk.experiment, checkpoint=checkpoint)
        )
    changed = [
        trunks.get(p.hash) or dataclasses.replace(p, inherited=inherited.get(p.hash, 0.0)) for p in points
    ]
    return sorted(changed, key=lambda p: p.hash not in trunks)


def copy_trunk_checkpoint(point: Point, points: list[Point], log: Callable[[str], None]) -> None:
    """Copies the trunk's checkpoint, and its metrics up to there, into the folder of a branch that has no
    checkpoint yet.

    Does nothing for points that are no branch. Logs a line where the trunk has no such checkpoint: the branch
    then trains from scratch.
    """
    trunk = next(
        (group[0] for group in group_by_trunk(points) if point.hash in [p.hash for p in group[1:]]), None
    )
    if trunk is None:
        return
    assert point.experiment
    assert trunk.experiment
    run_dir, trunk_dir, step = (
        Path(point.experiment.run_dir),
        Path(trunk.experiment.run_dir),
        branching_step(point.experiment),
    )
    if (run_dir / "checkpoints").exists() or not step:
        return
    source = trunk_dir / "checkpoints" / str(step)
    if not source.exists():
        log(
            f"point {point.number} {point.name}: trunk {trunk.name} has no checkpoint of step {step}; "
            "training from the start"
        )
        return
    lines = [line for line in read_json_lines(trunk_dir / "metrics.jsonl") if line["step"] <= step]
    write_atomic(run_dir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    with new_folder(run_dir / "checkpoints") as part:
        shutil.copytree(source, part / str(step))


def branching_step(experiment: Experiment) -> int:
    """The last step before a run's learning rate depends on its length; 0 where it depends on it from the
    first step on."""
    return min(decay_begins(experiment.optimizer, experiment.train.steps), experiment.train.steps - 1)


def steps(point: Point) -> int:
    """train.steps of a point that has an experiment."""
    assert point.experiment
    return point.experiment.train.steps
