"""Times `make test`, and prints the seconds of the tests by folder beside those on record.

  python -m tools.time_tests                       runs `make test` with empty caches: wall, CPU and seconds by folder
  python -m tools.time_tests warm=true             with the caches of earlier runs
  python -m tools.time_tests xml=report.xml        only reads a report of pytest's --junitxml
  python -m tools.time_tests files=20              prints the longest files too
  python -m tools.time_tests record=true           writes tests/seconds.json, after which the tests are ordered (tests/lanes.py)

Exit code 1 where tests failed, or where a folder takes over a quarter (and 5 s) more CPU time than on record.
A machine that is slower in all folders is no failure: the recorded seconds are first multiplied by the median
ratio of the folders.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tests" / "seconds.json"
GROWTH, SLACK = 1.25, 5.0
"""A folder may take this many times its recorded CPU seconds, and so many seconds more."""


@dataclass
class Seconds:
    """Time of some tests: how many ran, seconds on the clock (added up over workers), and of CPU (0.0 where
    the report has none).
    """

    tests: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    def add(self, other: Seconds) -> None:
        """Adds the figures of other tests."""
        self.tests, self.wall, self.cpu = (
            self.tests + other.tests,
            self.wall + other.wall,
            self.cpu + other.cpu,
        )


def by_file(report: Path) -> dict[str, Seconds]:
    """Path of a file, relative to the repository → its tests' time, from a report of `--junitxml`."""
    found: dict[str, Seconds] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.get("classname", "").replace(".", "/")
        while module and not (ROOT / f"{module}.py").exists():  # doctests and classes have more parts
            module = module.rpartition("/")[0]
        cpu = sum(float(p.get("value", 0)) for p in case.iter("property") if p.get("name") == "cpu")
        file = f"{module}.py" if module else case.get("classname", "").replace(".", "/")
        found.setdefault(file, Seconds()).add(Seconds(1, float(case.get("time", 0)), cpu))
    return found


def by_folder(files: dict[str, Seconds]) -> dict[str, Seconds]:
    """Folder below tests/ (or llm_jax for its doctests) → its tests' time, the longest first."""
    found: dict[str, Seconds] = {}
    for file, seconds in files.items():
        parts = file.split("/")
        folder = "llm_jax" if parts[0] == "llm_jax" else parts[1] if len(parts) > 2 else "tests"
        found.setdefault(folder, Seconds()).add(seconds)
    return dict(sorted(found.items(), key=lambda item: -max(item[1].wall, item[1].cpu)))


def too_long(now: dict[str, Seconds], before: dict[str, Seconds]) -> dict[str, float]:
    """Folder → the CPU seconds that it may take, for those that take more.

    >>> before = {name: Seconds(1, 0.0, 20.0) for name in "abc"}
    >>> too_long({"a": Seconds(1, 0.0, 40.0), "b": Seconds(1, 0.0, 44.0), "c": Seconds(1, 0.0, 90.0)}, before)
    {'c': 66.0}
    """
    common = [name for name in now if name in before and now[name].cpu and before[name].cpu]
    if not common:
        return {}
    machine = statistics.median(now[name].cpu / before[name].cpu for name in common if before[name].cpu > 1.0)
    allowed = {name: GROWTH * machine * before[name].cpu + SLACK * machine for name in common}
    return {name: allowed[name] for name in common if now[name].cpu > allowed[name]}


def print_table(now: dict[str, Seconds], before: dict[str, Seconds], title: str) -> None:
    """One line a folder or file; the time on record is on the right, where there is one."""
    print(f"{title:44} {'tests':>6} {'seconds':>8} {'CPU':>8} {'recorded':>9}")
    total = Seconds()
    for name, seconds in now.items():
        total.add(seconds)
        recorded = f"{before[name].cpu:9.1f}" if name in before and before[name].cpu else f"{'-':>9}"
        print(f"{name:44} {seconds.tests:6} {seconds.wall:8.1f} {seconds.cpu:8.1f} {recorded}")
    print(
        f"{'together':44} {total.tests:6} {total.wall:8.1f} {total.cpu:8.1f} "
        f"{sum(s.cpu for s in before.values()):9.1f}"
    )


def run_tests(report: Path, warm: bool) -> tuple[int, str]:
    """Runs `make test`; returns its exit code and a line on its time."""
    with tempfile.TemporaryDirectory() as caches:
        environment = {
            **os.environ,
            "PYTEST_ADDOPTS": f"{os.environ.get('PYTEST_ADDOPTS', '')} --junitxml={report}",
        }
        if not warm:
            environment["LLM_JAX_TEST_CACHE"] = caches
        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        code = subprocess.run(["make", "test"], cwd=ROOT, env=environment).returncode
        seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    kind = "caches of earlier runs" if warm else "empty caches"
    return (
        code,
        f"make test: {seconds / 60:.1f} minutes, {cpu / 60:.1f} of CPU on {os.cpu_count()} cores, {kind}",
    )


def main(arguments: list[str]) -> int:
    """The command; its exit code."""
    known = {"xml": "", "record": "false", "files": "0", "warm": "false"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in known:
            print(
                f"{argument}: no such argument. Write {', '.join(f'{k}=...' for k in known)}.",
                file=sys.stderr,
            )
            return 2
        known[key] = value
    code, line = 0, ""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(known["xml"] or f"{folder}/tests.xml")
        if not known["xml"]:
            code, line = run_tests(report, known["warm"] == "true")
        files = by_file(report)
    record = json.loads(RECORD.read_text())["files"] if RECORD.exists() else {}
    before = {name: Seconds(**values) for name, values in record.items()}
    folders, folders_before = by_folder(files), by_folder(before)
    if int(known["files"]):
        longest = sorted(files, key=lambda name: -max(files[name].wall, files[name].cpu))[
            : int(known["files"])
        ]
        print_table({name: files[name] for name in longest}, before, "longest files")
        print()
    print_table(folders, folders_before, "folder")
    for name, allowed in too_long(folders, folders_before).items():
        code = code or 1
        print(
            f"{name}: {folders[name].cpu:.0f} s of CPU, {allowed:.0f} are allowed. Make its tests "
            "cheaper, or use record=true and say why."
        )
    if known["record"] == "true":
        rounded = {
            name: {"tests": s.tests, "wall": round(s.wall, 1), "cpu": round(s.cpu, 1)}
            for name, s in sorted(files.items())
        }
        RECORD.write_text(
            json.dumps({"files": rounded}, indent=1)
            .replace("{\n   ", "{")
            .replace(",\n   ", ", ")
            .replace("\n  }", "}")
            + "\n"
        )
    if line:
        print(line)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
