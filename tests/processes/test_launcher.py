"""Rank, size, hosts and ports from a launcher's environment variables: Slurm in all its forms, MPI, and
none."""

from __future__ import annotations

import pytest

from llm_jax.core.errors import UserError
from llm_jax.processes import address
from llm_jax.processes.address import coordinator_address
from llm_jax.processes.launcher import LaunchedProcess, expand_counts, expand_hosts, read_task, reserved_ports


def slurm(**changed: object) -> dict[str, str]:
    """The environment of task 5 of a step of two nodes with 4 + 2 tasks."""
    environ = {
        "SLURM_JOB_ID": "123", "SLURM_STEP_ID": "0", "SLURM_PROCID": 5, "SLURM_STEP_NUM_TASKS": 6,
        "SLURM_NTASKS": 6, "SLURM_LOCALID": 1,
        "SLURM_NODEID": 1, "SLURM_STEP_NODELIST": "node[09-10]", "SLURM_STEP_TASKS_PER_NODE": "4,2",
        "SLURMD_NODENAME": "node10",
    }  # fmt: skip
    return {name: str(value) for name, value in {**environ, **changed}.items() if value is not None}


def test_a_process_without_a_launcher_is_alone():
    task = read_task({})
    assert (task.rank, task.size, task.local_rank, task.local_size, task.launcher) == (0, 1, 0, 1, "")
    assert task.host


def test_a_step_of_slurm():
    task = read_task(slurm())
    assert (task.rank, task.size, task.local_rank, task.local_size) == (5, 6, 1, 2)
    assert (task.host, task.hosts, task.host_sizes, task.coordinator) == (
        "node10",
        ("node09", "node10"),
        (4, 2),
        "node09",
    )
    assert (task.job, task.step, task.restart, task.launcher) == ("123", "0", 0, "slurm")
    assert read_task(slurm(SLURM_RESTART_COUNT=2)).restart == 2


def test_all_processes_of_a_step_come_to_the_same_ports_and_other_steps_and_restarts_to_others():
    first = read_task(slurm())
    again = read_task(slurm(SLURM_PROCID=0, SLURM_NODEID=0, SLURM_LOCALID=0, SLURMD_NODENAME="node09"))
    assert (first.ports, first.token) == (again.ports, again.token)
    others = [
        read_task(slurm(**{name: 1})) for name in ("SLURM_STEP_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_ID")
    ]
    for other in others:
        assert not set(first.ports) & set(other.ports)
        assert first.token != other.token
    assert all(20000 <= port < 32000 for port in first.ports)
    assert len(set(first.ports)) == 8


def test_ports_that_slurm_reserves_are_used():
    task = read_task(slurm(SLURM_STEP_RESV_PORTS="12000-12002,12010"))
    assert task.ports == (12000, 12001, 12002, 12010)
    assert reserved_ports("") == ()


def test_tasks_without_srun_are_a_user_error():
    with pytest.raises(
        UserError, match="SLURM_NTASKS=8: the job has 8 tasks, and this process was started without srun"
    ):
        read_task({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"})
    task = read_task(
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_RESTART_COUNT": "3"}
    )  # a batch script's own process
    assert (task.size, task.job, task.restart) == (1, "1", 3)


def test_one_task_of_a_larger_job():
    """As in srun --ntasks=1, or a shell that srun --pty opened."""
    task = read_task(
        slurm(
            SLURM_PROCID=0,
            SLURM_STEP_NUM_TASKS=1,
            SLURM_LOCALID=0,
            SLURM_NODEID=0,
            SLURM_STEP_TASKS_PER_NODE="1",
        )
    )
    assert (task.rank, task.size) == (0, 1)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("node1", ("node1",)),
        ("a[1-3],b", ("a1", "a2", "a3", "b")),
        ("rack[1-2]n[03-04]", ("rack1n03", "rack1n04", "rack2n03", "rack2n04")),
        (
            "gpu-[008-011,20]-x,login-1.site.org",
            ("gpu-008-x", "gpu-009-x", "gpu-010-x", "gpu-011-x", "gpu-20-x", "login-1.site.org"),
        ),
        ("", ()),
    ],
)
def test_short_forms_of_host_names(short, long):
    assert expand_hosts(short) == long


def test_short_forms_of_counts():
    assert expand_counts("2(x3),1,4(x2)") == (2, 2, 2, 1, 4, 4)
    assert expand_counts("") == ()


def own(**changed: str) -> dict[str, str]:
    return {"LLM_JAX_RANK": "1", "LLM_JAX_SIZE": "2", "LLM_JAX_COORDINATOR": "node1:5000", **changed}


def test_our_own_variables_are_for_any_other_launcher():
    task = read_task(own())
    assert (task.rank, task.size, task.coordinator, task.ports, task.launcher) == (
        1,
        2,
        "node1",
        (5000,),
        "environment",
    )
    assert read_task(own(LLM_JAX_COORDINATOR="[fe80::1]:77")).coordinator == "fe80::1"
    assert read_task({**slurm(), **own()}).size == 2  # they were set on purpose


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"LLM_JAX_RANK": "2"}, "rank 2 of 2 processes; ranks are 0 to 1"),
        ({"LLM_JAX_RANK": "first"}, "LLM_JAX_RANK=first: must be a whole number"),
        ({"LLM_JAX_SIZE": ""}, "LLM_JAX_SIZE=: must be a whole number"),
        ({"LLM_JAX_COORDINATOR": "node1"}, "LLM_JAX_COORDINATOR=node1: must be host:port"),
        ({"LLM_JAX_COORDINATOR": "node1:99999"}, "LLM_JAX_COORDINATOR=node1:99999: must be host:port"),
    ],
)
def test_wrong_values_are_user_errors(changed, message):
    with pytest.raises(UserError) as caught:
        read_task(own(**changed))
    assert message in str(caught.value)


def test_mpi_on_one_host_needs_nothing_more_and_on_several_a_coordinator():
    mpi = {
        "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
        "OMPI_MCA_ess_base_jobid": "77",
    }  # fmt: skip
    task = read_task(mpi)
    assert (task.rank, task.size, task.local_rank, task.coordinator) == (3, 4, 3, "127.0.0.1")
    assert task.ports
    assert read_task({**mpi, **slurm()}).launcher == "mpi"  # mpirun inside a job
    with pytest.raises(UserError, match="set LLM_JAX_COORDINATOR=host:port"):
        read_task({**mpi, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"})
    assert (
        read_task({**mpi, "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "LLM_JAX_COORDINATOR": "a:1"}).coordinator == "a"
    )
    assert read_task({"PMI_RANK": "0", "PMI_SIZE": "2"}).launcher == "pmi"


def resolving(monkeypatch, address_: str | None) -> None:
    """Has all names be at this address, or be unknown."""

    def getaddrinfo(name, *_, **__):
        if address_ is None:
            raise OSError(-2, "Name or service not known")
        return [(2, 1, 6, "", (address_, 0))]

    monkeypatch.setattr(address.socket, "getaddrinfo", getaddrinfo)


def test_over_several_hosts_the_address_is_never_a_loopback_one(monkeypatch):
    """/etc/hosts often says 127.0.1.1 for a host's own name."""
    task = read_task(slurm())
    resolving(monkeypatch, "10.0.0.9")
    assert coordinator_address(task) == "10.0.0.9"
    for name in ("127.0.1.1", None):
        resolving(monkeypatch, name)
        monkeypatch.setattr(address, "slurm_address", lambda node: "10.1.1.1" if node == "node09" else None)
        assert coordinator_address(task) == "10.1.1.1"
    monkeypatch.setattr(address, "slurm_address", lambda node: None)
    with pytest.raises(
        OSError,
        match=r"node09 is not a name that this host knows \(DNS, /etc/hosts\), and Slurm has no address "
        r"for it",
    ):
        coordinator_address(task)
    resolving(monkeypatch, "127.0.1.1")
    with pytest.raises(OSError, match="node09 is a loopback address here"):
        coordinator_address(task)


def test_on_one_host_it_is():
    assert (
        coordinator_address(LaunchedProcess(1, 2, hosts=("node1",), coordinator="node1", launcher="slurm"))
        == "127.0.0.1"
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"SLURM_STEP_NODELIST": "node[1-3"}, "SLURM_STEP_NODELIST=node[1-3: is not what Slurm writes"),
        ({"SLURM_STEP_NODELIST": "node[a-b]"}, "is not what Slurm writes (not a list of hosts"),
        ({"SLURM_STEP_NODELIST": "node1,,node2"}, "is not what Slurm writes (not a list of hosts"),
        ({"SLURM_STEP_NODELIST": "node1 node2"}, "is not what Slurm writes (not a list of hosts"),
        ({"SLURM_STEP_NODELIST": "node[5-3]"}, "is not what Slurm writes (the range 5-3 is empty)"),
        (
            {"SLURM_STEP_NODELIST": "node[1-]x[-2]"},
            "SLURM_STEP_NODELIST=node[1-]x[-2]: is not what Slurm writes",
        ),
        ({"SLURM_STEP_NODELIST": "node[1-999999999999]"}, "999,999,999,998 are too many"),
        ({"SLURM_STEP_NODELIST": "a[1-999]b[1-999]"}, "998,001 are too many"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4,x"}, "SLURM_STEP_TASKS_PER_NODE=4,x: is not what Slurm writes"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x999999999)"}, "999,999,999 are too many"),
        (
            {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
            "SLURM_STEP_TASKS_PER_NODE=4(x2): are 8 tasks, and SLURM_STEP_NUM_TASKS=6",
        ),
        ({"SLURM_NODEID": 2}, "SLURM_NODEID, SLURM_STEP_TASKS_PER_NODE: rank 2 of 2"),
        ({"SLURM_LOCALID": 2}, "SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE: rank 2 of 2"),
        ({"SLURM_STEP_RESV_PORTS": "any"}, "SLURM_STEP_RESV_PORTS=any: is not what Slurm writes"),
        ({"SLURM_STEP_RESV_PORTS": "65530-65540"}, "(ports are 1 to 65535)"),
        ({"SLURM_PROCID": "²"}, "SLURM_PROCID=²: must be a whole number"),
        ({"SLURM_PROCID": "9" * 5000}, "9: must be a whole number"),
        ({"SLURM_PROCID": "-1"}, "SLURM_PROCID=-1: must be a whole number"),
        ({"SLURM_RESTART_COUNT": "two"}, "SLURM_RESTART_COUNT=two: must be a whole number"),
    ],
)
def test_nonsense_in_slurms_variables_is_one_line_that_names_them(changed, message):
    with pytest.raises(UserError) as caught:
        read_task(slurm(**changed))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"LLM_JAX_LOCAL_RANK": "1"}, "LLM_JAX_LOCAL_RANK, LLM_JAX_LOCAL_SIZE: rank 1 of 1"),
        ({"LLM_JAX_LOCAL_RANK": "2", "LLM_JAX_LOCAL_SIZE": "2"}, "rank 2 of 2 processes"),
        ({"LLM_JAX_LOCAL_SIZE": "4"}, "LLM_JAX_LOCAL_SIZE=4: more than LLM_JAX_SIZE=2"),
        ({"LLM_JAX_LOCAL_SIZE": "0"}, "LLM_JAX_LOCAL_RANK, LLM_JAX_LOCAL_SIZE: rank 0 of 0"),
        ({"LLM_JAX_COORDINATOR": "node1:²"}, "must be host:port"),
        ({"LLM_JAX_COORDINATOR": ":5000"}, "must be host:port"),
        ({"LLM_JAX_COORDINATOR": "http://node1:5000"}, "must be host:port"),
        ({"LLM_JAX_COORDINATOR": "node1:5000:x:1"}, "must be host:port"),
    ],
)
def test_our_own_variables_agree(changed, message):
    with pytest.raises(UserError) as caught:
        read_task(own(**changed))
    assert message in str(caught.value)


TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip


def test_torchrun_would_make_every_process_a_run_of_its_own():
    """Under srun all of a task's processes would have one rank."""
    task = slurm(
        SLURM_STEP_NUM_TASKS=1, SLURM_PROCID=0, SLURM_NODEID=0, SLURM_LOCALID=0, SLURM_STEP_TASKS_PER_NODE=1
    )
    without_torchrun = {name: value for name, value in TORCHRUN.items() if name != "TORCHELASTIC_RUN_ID"}
    for environ in (TORCHRUN, {**task, **TORCHRUN}, without_torchrun):
        with pytest.raises(
            UserError,
            match=r"WORLD_SIZE=4: .* not read\. Start with srun or mpirun; or set, .*LLM_JAX_RANK=\$RANK",
        ):
            read_task(environ)
    assert read_task({**TORCHRUN, **own()}).size == 2
    assert read_task({**TORCHRUN, "WORLD_SIZE": "1"}).size == 1
    assert read_task({"WORLD_SIZE": "4"}).size == 1  # some containers set it everywhere
    assert read_task({**task, **without_torchrun}).launcher == "slurm"
    with pytest.raises(UserError, match="WORLD_SIZE=all: must be a whole number"):
        read_task({**TORCHRUN, "WORLD_SIZE": "all"})
