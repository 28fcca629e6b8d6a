"""Which GPUs a task uses, for every way in which Slurm allocates them. The environments are those of a real
Slurm 22.05 with four GPUs a node."""

from __future__ import annotations

import pytest

from llm_jax.core.errors import UserError
from llm_jax.processes import local_gpus, preflight
from llm_jax.processes.launcher import LaunchedProcess


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    """This machine's own GPUs don't count."""
    monkeypatch.setattr(local_gpus, "present_devices", lambda: 0)
    monkeypatch.setattr(local_gpus, "list_uuids", list)


def environ(visible: str | None, given: int | None) -> dict[str, str]:
    return ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) | (
        {} if given is None else {"SLURM_GPUS_ON_NODE": str(given)}
    )


@pytest.mark.parametrize(
    ("what", "visible", "given", "local", "expected"),
    [
        ("a task per node, all GPUs", "0,1,2,3", 4, (0, 1), None),
        ("a task per GPU, all visible (--gpus-per-node)", "0,1,2,3", 4, (2, 4), (2,)),
        ("two tasks for four GPUs", "0,1,2,3", 4, (1, 2), (2, 3)),
        ("--gpus-per-task=1", "1", 4, (1, 4), None),
        ("--gpus-per-task=2", "2,3", 4, (1, 2), None),
        ("--gpus-per-task=1, numbered from 0 in a cgroup", "0", 4, (3, 4), None),
        ("--gpus-per-task=1, one task", "0", 1, (0, 1), None),
        ("GPUs by their UUIDs", "GPU-a,GPU-b", 2, (1, 2), (1,)),
        ("no GPUs", None, None, (1, 4), None),
        ("none visible", "", 4, (1, 4), None),
        ("not Slurm, each task its own", "3", None, (3, 4), None),
        ("not Slurm, all visible", "0,1,2,3", None, (3, 4), (3,)),
        ("Slurm without CUDA_VISIBLE_DEVICES", None, 4, (3, 4), (3,)),
    ],
)
def test_the_devices_of_a_task(what, visible, given, local, expected):
    task = LaunchedProcess(local_rank=local[0], local_size=local[1], host="node1")
    assert local_gpus.local_devices(task, environ(visible, given)) == expected, what


def test_tasks_that_cannot_share_evenly_are_a_user_error():
    with pytest.raises(
        UserError,
        match=r"node1: 3 tasks share 4 GPUs, which doesn't divide\. Start a task per GPU \(srun "
        r"--ntasks-per-node=4\)",
    ):
        local_gpus.local_devices(
            LaunchedProcess(local_rank=0, local_size=3, host="node1"), environ("0,1,2,3", 4)
        )


def test_names_are_those_of_the_driver_where_there_is_one(monkeypatch):
    task = LaunchedProcess(local_rank=1, local_size=2, host="node1")
    assert local_gpus.device_names(task, environ("4,5,6,7", 4)) == ["6", "7"]
    monkeypatch.setattr(local_gpus, "list_uuids", lambda: ["GPU-a", "GPU-b", "GPU-c", "GPU-d"])
    assert local_gpus.device_names(task, environ("0,1,2,3", 4)) == ["GPU-c", "GPU-d"]
    assert local_gpus.device_names(LaunchedProcess(), environ(None, 4)) == [
        "GPU-a",
        "GPU-b",
        "GPU-c",
        "GPU-d",
    ]


def facts(
    host: str, names: list[str], given: int | None = 4, visible: str | None = "0", driver: bool = False
) -> dict:
    return {"host": host, "devices": names, "given": given, "visible": visible, "driver": driver}


def test_all_gpus_in_use_are_fine():
    preflight.check_devices([facts("a", ["0", "1", "2", "3"]), facts("b", ["0", "1", "2", "3"])])
    preflight.check_devices([facts(host, [str(i)]) for host in "ab" for i in range(4)])
    preflight.check_devices(
        [facts("a", ["0"], given=4) for _ in range(4)]
    )  # numbered from 0 in cgroups: different GPUs
    preflight.check_devices([facts("a", [], given=None), facts("b", [], given=None)])


@pytest.mark.parametrize(
    ("everyone", "message"),
    [
        (
            [facts("a", list("0123")), facts("b", ["0"])],
            "b: Slurm allocated 4 GPUs, and its task sees 1 of them (CUDA_VISIBLE_DEVICES=0)",
        ),
        (
            [facts("a", ["0"]), facts("a", ["1"], visible="1")],
            "a: Slurm allocated 4 GPUs, and 2 tasks see 2 of them",
        ),
        ([facts("a", [], visible="")], "a: Slurm allocated 4 GPUs, and its task sees 0 of them"),
        ([facts("a", ["GPU-x"], given=2, driver=True)] * 2, "a: its 2 tasks use one GPU twice (GPU-x)"),
        (
            [facts("a", ["0", "1"], given=2), facts("b", ["0"], given=1)],
            "GPUs: the number per process differs (a has 2 for 1 tasks, b has 1",
        ),
    ],
)
def test_gpus_that_are_idle_missing_or_used_twice_are_named_by_host(everyone, message):
    with pytest.raises(UserError) as caught:
        preflight.check_devices(everyone)
    assert message in str(caught.value)
