"""Differences between the processes of a run end it with one line that names the host, before anything is
compiled."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.errors import Fault, UserError
from llm_jax.processes import preflight
from llm_jax.processes.group import alone
from tests.processes.launch_group import ran

CHECK = """
from pathlib import Path
from llm_jax.processes import preflight
{patch}
preflight.check(group, "model: small", Path({folder!r}))
report("fine")
"""


def check(folder: Path | str, patch: str = "pass"):
    """The preflight of two processes, which `patch` makes differ."""
    return ran(2, CHECK.format(folder=str(folder), patch=patch))


def failed(processes, *words: str) -> None:
    """All ended with 2, and one line has all these words."""
    assert [process.code for process in processes] == [2, 2], processes
    errors = processes[0].err + processes[1].err
    assert errors.count("\n") == 1, errors
    for word in words:
        assert word in errors, errors


def test_processes_that_are_alike_pass_and_leave_nothing_behind(tmp_path):
    processes = check(tmp_path / "not" / "yet" / "there")
    assert [(process.code, process.out, process.err) for process in processes] == [(0, "fine\n", "")] * 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (
            "preflight.version = lambda name: '0.9' if rank and name == 'jax' else '0.10'",
            ("jax: differs between hosts", "0.9 on "),
        ),
        (
            "preflight.code_hash = lambda: str(rank)",
            ("llm_jax (its code): differs between hosts", "one copy of the code"),
        ),
        (
            "if rank: os.environ['XLA_FLAGS'] = '--xla_x'",
            ("XLA_FLAGS: differs between hosts", "--xla_x on ", "Set it on all hosts."),
        ),
    ],
    ids=["package", "code", "variable"],
)
def test_what_differs_is_named_once(tmp_path, patch, words):
    failed(check(tmp_path, patch), *words)


def test_a_run_folder_that_is_not_shared_is_named_by_host(tmp_path):
    other = """
preflight.SEEN_SECONDS = 0.5
real = Path.exists
Path.exists = lambda self: not (".preflight" in self.name and rank) and real(self)
"""
    failed(
        check(tmp_path, other),
        f"run_dir={tmp_path}: on ",
        "it is not the same folder as on",
        "a file system that all hosts share",
    )
    assert not list(tmp_path.iterdir())


def test_a_run_folder_that_one_cannot_write_to_is_named_by_host(tmp_path):
    other = """
real = Path.write_text
def write(self, text):
    if rank:
        raise OSError(30, "Read-only file system")
    real(self, text)
Path.write_text = write
"""
    failed(
        check(tmp_path, other), f"run_dir={tmp_path}: on ", "it can't be written to (Read-only file system)"
    )
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_a_user_error_before_the_first_checkpoint(tmp_path, monkeypatch):
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(3_000_000_000))
    with alone() as group:
        preflight.check_room(group, tmp_path / "run", 2_000_000_000)
        with pytest.raises(
            UserError, match=r"4.00 GB are needed for checkpoints, and its file system has 3.00 GB left"
        ):
            preflight.check_room(group, tmp_path / "run", 4_000_000_000)


def test_the_few_hosts_that_differ_are_named():
    hosts = [f"node{i}" for i in range(8)]
    line = preflight.differing("jax", ["0.10"] * 6 + ["0.9", None], hosts)
    assert "0.10 on most, but 0.9 on node6; absent on node7" in line
    assert "and 3 more" in preflight.differing(
        "jax", ["1"] * 8 + [str(i) for i in range(2, 9)], [f"n{i}" for i in range(15)]
    )


def test_the_code_is_hashed_by_names_and_contents(tmp_path, monkeypatch):
    (tmp_path / "processes").mkdir()
    monkeypatch.setattr(preflight, "__file__", str(tmp_path / "processes" / "preflight.py"))
    seen = {preflight.code_hash()}
    for name, text in (("a.py", "x"), ("a.py", "y"), ("b.py", "x")):
        (tmp_path / name).write_text(text)
        seen.add(preflight.code_hash())
    (tmp_path / "a.txt").write_text("")
    assert preflight.code_hash() in seen
    assert len(seen) == 4


# With JAX, on the simulated devices of one process:


def test_alone_all_is_well_and_speeds_can_be_measured():
    from llm_jax.processes import probe

    with alone() as group:
        assert probe.check(group, {"JAX_PLATFORMS": "cpu"}) == {}
        assert 0 < probe.matmul_speed(64) < 1000
        assert 0 < probe.link_speed(group, 1 << 16) < 10_000


def test_a_sum_has_a_place_for_every_device():
    from llm_jax.processes import probe

    np.testing.assert_array_equal(probe.contributions(), np.arange(1, 9)[None])


def test_a_wrong_sum_ends_the_run():
    from llm_jax.processes import probe

    found = probe.expected((1, 8)).copy()
    found[0, 5] += 1
    with (
        alone() as group,
        pytest.raises(Fault, match=r"a sum over all devices is wrong in 1 places \(device 5\)"),
    ):
        probe.check_sum(group, found)


def test_the_host_whose_part_of_a_sum_is_wrong_is_named():
    body = """
os.environ["JAX_PLATFORMS"] = "cpu"
from llm_jax.processes import probe
found = probe.expected((2, 2)).copy()
found[1, 1] = 0
probe.check_sum(group, found)
"""
    processes = ran(2, body)
    assert [process.code for process in processes] == [86, 1]
    for process in processes:
        assert "rank 1 on " in process.err
        assert "a sum over all devices is wrong" in process.err


def test_speeds_slowest_rank_the_median_are_found_and_small_differences_are_not():
    from llm_jax.processes.probe import slowest_rank

    assert slowest_rank([400.0, 390.0, 120.0, 410.0], 1 / 2) == 2
    assert slowest_rank([400.0, 300.0, 250.0, 410.0], 1 / 2) is None
    assert slowest_rank([400.0, 100.0], 1 / 2) is None  # which of two is right?


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("aaa", [(0, 1), (1, 2), (2, 0)]),
        ("aabb", [(0, 2), (2, 0), (1, 3), (3, 1)]),
        ("abab", [(0, 1), (1, 0), (2, 3), (3, 2)]),
        ("aab", [(0, 2), (2, 0), (1, 1)]),
    ],
)
def test_links_are_compared_with_links_of_their_kind(hosts, expected):
    """Between hosts, not within one: those are ten times as fast, and would make every other look slow."""
    from llm_jax.processes.probe import ring

    assert ring(hosts) == expected


def jax_facts(**changed) -> dict:
    return {"platform": "gpu", "kind": "NVIDIA H100", "count": 4, "expected": 4, **changed}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (jax_facts(count=3), "b: a process should have 4 GPUs, and JAX finds 3. Run nvidia-smi there."),
        (jax_facts(kind="NVIDIA A100"), "b: the devices are not as on a (NVIDIA A100, not NVIDIA H100)"),
        (
            jax_facts(platform="cpu", kind="cpu", count=1),
            "b: Slurm allocated 4 GPUs, and JAX finds only the CPU",
        ),
        (jax_facts(count=2, expected=None), "b: the number of devices per process is not as on a (2, not 4)"),
    ],
)
def test_devices_that_jax_does_not_find_are_named_by_host(second, message):
    from llm_jax.processes import probe

    probe.check_devices([jax_facts(), jax_facts()], ["a", "b"], {})
    with pytest.raises(UserError) as caught:
        probe.check_devices([jax_facts(), second], ["a", "b"], {})
    assert message in str(caught.value)
