"""One long run that serves many budgets: with warm-up-stable-decay, runs that differ only in their length are the same until the
shorter one's decay begins (Hu et al. 2024, MiniCPM; Hägele et al. 2024). So the longest, the trunk, keeps its checkpoints at those
steps, and the others start from copies of them. Batches are a function of the step alone: a branch is the whole run, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment
from llm_jax.run.run_folder import configuration_hash
from llm_jax.scaling.grid import Point
from llm_jax.train import metrics
from llm_jax.train.optimizer import decay_begins


def families(points: list[Point]) -> list[list[Point]]:
    """Points that differ in nothing but train.steps, the longest first. Raises UserError for one that has no place in a family."""
    found: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        if point.experiment and not point.held_out:
            if spike := point.experiment.train.rollback.spike:
                raise UserError(f"train.rollback.spike={spike:g}: a trunk that was rolled back is not what its branches would be; use 0 or no trunks")
            train = dataclasses.replace(point.experiment.train, steps=1)
            found[configuration_hash(dataclasses.replace(point.experiment, train=train))].append(point)
    return [sorted(family, key=lambda p: -steps(p)) for family in found.values() if len(family) > 1]


def with_trunks(points: list[Point]) -> list[Point]:
    """The points, each trunk before its branches and with the checkpoints that they need, the branches with what they inherit."""
    leaders: dict[str, Point] = {}
    inherited: dict[str, float] = {}
    for trunk, *branches in families(points):
        inherited |= {b.hash: b.cost * branching_step(b.experiment) / b.experiment.train.steps for b in branches if b.experiment}
        also = tuple(sorted({branching_step(b.experiment) for b in branches if b.experiment and branching_step(b.experiment)}))
        assert trunk.experiment
        checkpoint = dataclasses.replace(trunk.experiment.checkpoint, also=also)
        leaders[trunk.hash] = dataclasses.replace(trunk, experiment=dataclasses.replace(trunk.experiment, checkpoint=checkpoint))
    changed = [leaders.get(p.hash) or dataclasses.replace(p, inherited=inherited.get(p.hash, 0.0)) for p in points]
    return sorted(changed, key=lambda p: p.hash not in leaders)


def branch_off(point: Point, points: list[Point], log: Callable[[str], None]) -> None:
    """Gives a branch that has not begun its trunk's checkpoint, and the metrics up to there."""
    trunk = next((family[0] for family in families(points) if point.hash in [p.hash for p in family[1:]]), None)
    if trunk is None:
        return
    assert point.experiment
    assert trunk.experiment
    run_dir, of_trunk, step = Path(point.experiment.run_dir), Path(trunk.experiment.run_dir), branching_step(point.experiment)
    if (run_dir / "checkpoints").exists() or not step:
        return
    source = of_trunk / "checkpoints" / str(step)
    if not source.exists():
        log(f"point {point.number} {point.name}: its trunk {trunk.name} has no checkpoint of step {step}, so it is trained from the start")
        return
    lines = [line for line in metrics.read_metrics(of_trunk / "metrics.jsonl") if line["step"] <= step]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    part = run_dir / "checkpoints.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part / str(step))
    part.rename(run_dir / "checkpoints")  # whole or not at all


def branching_step(experiment: Experiment) -> int:
    """The last step at which a run with this schedule has not begun to decay; 0 where it never had another rate than its own."""
    return min(decay_begins(experiment.optimizer, experiment.train.steps), experiment.train.steps - 1)


def steps(point: Point) -> int:
    """The point's length."""
    assert point.experiment
    return point.experiment.train.steps
