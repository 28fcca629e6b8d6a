"""How `pytest -n N` deals the tests out: one lane for tests that wait, the others for tests that compute, the
longest work first.

A unit of work is a file: what its tests compile, or its fixtures train, is kept in its process and made once.
Folders whose files share such things are one unit. With three workers or more the last one takes the tests
marked `waits` before all others: they sleep, wait for processes or for Slurm, so the two cores are left to
the other workers. A lane that has nothing left helps the others.
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from xdist.scheduler import LoadScopeScheduling

SECONDS = Path(__file__).with_name("seconds.json")
"""Seconds by file as they were recorded: {"tests/parity/test_layouts.py": {"wall": 80.1, "cpu":
75.2}, ...}.
"""
TOGETHER = (
    ("tests/slurm/*", "tests/faults/test_under_slurm.py"),
    ("tests/plan/*",),
    ("tests/scaling/fit/*",),
    ("tests/serve/*",),
)
"""Files that are one unit: there is one Slurm cluster and one server, and plans and fits are kept in a process."""
WAITS = (
    "tests/slurm/*",
    "tests/faults/test_under_slurm.py",
    "tests/processes/*",
)
"""Files whose tests mostly wait; they get the marker `waits`."""


def waits(file: str) -> bool:
    """True if the tests of a file mostly wait; `file` is relative to the repository.

    >>> waits("tests/slurm/test_grid.py"), waits("tests/model/test_moe.py")
    (True, False)
    """
    return any(fnmatch(file, pattern) for pattern in WAITS)


def unit(nodeid: str) -> str:
    """The unit of work that a test belongs to.

    >>> unit("tests/model/test_moe.py::test_a[x::y]"), unit("tests/plan/test_cost.py::test_b")
    ('tests/model/test_moe.py', 'tests/plan/*')
    """
    file = nodeid.split("::", 1)[0]
    return next((patterns[0] for patterns in TOGETHER if any(fnmatch(file, p) for p in patterns)), file)


def recorded() -> dict[str, dict[str, float]]:
    """What SECONDS holds."""
    return json.loads(SECONDS.read_text())["files"] if SECONDS.exists() else {}


class Lanes(LoadScopeScheduling):
    """xdist's scheduler of scopes, with units as scopes; it gives each worker the longest unit of
    its lane.
    """

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)

    def schedule(self) -> None:
        """Deals out the first units, when all workers have collected the tests."""
        first = self.collection is None
        if first and self.collection_is_completed:
            known = recorded()
            tests = next(iter(self.registered_collections.values()))
            self._seconds: dict[str, float] = {}
            self._waiting: set[str] = set()
            for file in dict.fromkeys(nodeid.split("::", 1)[0] for nodeid in tests):
                name = unit(file)
                self._seconds[name] = self._seconds.get(name, 0.0) + known.get(file, {}).get(
                    "wall", 10.0 if file.startswith("tests/") else 0.1
                )
                if waits(file):
                    self._waiting.add(name)
            self._names = sorted(node.gateway.id for node in self.nodes)
        super().schedule()
        if not first:  # a worker begins a test when it has another, or knows that there is none
            for node in self.nodes:
                self._reschedule(node)

    def _reschedule(self, node: Any) -> None:
        """Deals out work to a worker, unless it is one in place of a dead one and hasn't collected the tests
        yet: `schedule` is called again when it has. (Two may die at once.)"""
        if node in self.registered_collections:
            super()._reschedule(node)

    def remove_node(self, node: Any) -> str | None:
        """The test during which a worker died, and which isn't tried again; None where all of its work was
        done.

        What it had left is dealt out anew. xdist's own method also puts back the test, which kills the next
        worker, and units without a test left, of which no report ever comes: the run then waits forever.
        """
        units = self.assigned_work.pop(node)
        left = [(unit, nodeid) for unit in units.values() for nodeid, done in unit.items() if not done]
        if not left:
            return None
        unit, crashed = left[0]
        unit[crashed] = True
        self.workqueue.update({name: unit for name, unit in units.items() if not all(unit.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed

    def _assign_work_unit(self, node: Any) -> None:
        waiting_lane = len(self._names) > 2 and node.gateway.id == self._names[-1]
        mine = [name for name in self.workqueue if (name in self._waiting) == waiting_lane] or list(
            self.workqueue
        )
        self.workqueue.move_to_end(max(mine, key=lambda name: self._seconds.get(name, 10.0)), last=False)
        super()._assign_work_unit(node)
