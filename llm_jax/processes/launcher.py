"""Reads from the launcher's environment variables which process of a run this is, on which host, and where
the rendezvous is. Imports no JAX.

`srun` sets all that is needed. Another launcher, or a test, starts N processes with

  LLM_JAX_RANK=0..N-1  LLM_JAX_SIZE=N  LLM_JAX_COORDINATOR=host:port     (rank 0's host, a free port there)

and, where several of them share a host, LLM_JAX_LOCAL_RANK and LLM_JAX_LOCAL_SIZE (else each uses all GPUs
that it sees). Open MPI's and PMI's variables (mpirun, mpiexec) give rank and size; over several hosts they
need LLM_JAX_COORDINATOR too.
"""

from __future__ import annotations

import math
import os
import re
import socket
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from llm_jax.core.errors import UserError

PORTS = 8
"""So many ports are tried, one after another, where the first are taken."""
MOST = 100_000
"""More hosts than any run has: a longer list is refused before it is made."""
_DIGITS = 18  # of any number in a variable: Python refuses to read those of some thousand
FIRST_PORT, PORT_COUNT = 20000, 12000
"""Below those that Linux gives to outgoing connections (32768 on)."""


@dataclass(frozen=True)
class LaunchedProcess:
    """A process of a run, as its launcher describes it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """The rank among the processes of this host."""
    local_size: int = 1
    """How many processes of the run are on this host."""
    host: str = ""
    """This host's name, as its launcher writes it."""
    hosts: tuple[str, ...] = ()
    """All hosts of the run, the one of rank 0 first; empty where the launcher doesn't tell."""
    host_sizes: tuple[int, ...] = ()
    """How many processes are on each of `hosts`; empty where the launcher doesn't tell."""
    coordinator: str = "127.0.0.1"
    """The host of rank 0, by name or address."""
    ports: tuple[int, ...] = ()
    """Rank 0 listens at the first of these that is free."""
    job: str = ""
    """The number of the Slurm job; empty outside Slurm."""
    step: str = ""
    """The number of the job step, or the session of an MPI launcher."""
    restart: int = 0
    """How often the job was requeued before this start."""
    launcher: str = ""
    """"slurm", "mpi", "pmi" or "environment"; empty for a process that was started by itself."""

    @property
    def token(self) -> str:
        """Equal in all processes of this start of the run, and in no other program that may listen at its
        ports."""
        return ":".join(
            (
                self.launcher,
                self.job,
                self.step,
                str(self.restart),
                str(self.size),
                str(os.getuid()),
                ",".join(map(str, self.ports)),
            )
        )

    @property
    def name(self) -> str:
        """This process, as messages name it."""
        return process_name(self.rank, self.host)


def process_name(rank: int, host: str) -> str:
    """A process, as messages name it: "rank 3 on node7"."""
    return f"rank {rank} on {host}" if host else f"rank {rank}"


def read_task(environ: Mapping[str, str]) -> LaunchedProcess:
    """The task that environment variables describe.

    Raises UserError where they contradict each other, or belong to a job of several tasks whose process was
    started without srun.
    """
    if "LLM_JAX_SIZE" in environ or "LLM_JAX_RANK" in environ:
        return from_own(environ)
    if "TORCHELASTIC_RUN_ID" in environ:  # torchrun, perhaps in a step of Slurm: that is one task to Slurm
        refuse_torchrun(environ)
    if number(environ, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        return from_mpi(
            environ,
            "mpi",
            (
                "OMPI_COMM_WORLD_RANK",
                "OMPI_COMM_WORLD_SIZE",
                "OMPI_COMM_WORLD_LOCAL_RANK",
                "OMPI_COMM_WORLD_LOCAL_SIZE",
            ),
        )
    if "SLURM_STEP_ID" in environ and "SLURM_PROCID" in environ:
        return from_slurm(environ)
    if number(environ, "PMI_SIZE", 1) > 1:
        return from_mpi(environ, "pmi", ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"))
    asked = number(environ, "SLURM_NTASKS", 1)
    if asked > 1:
        raise UserError(
            f"SLURM_NTASKS={asked}: the job has {asked} tasks, and this process was started without srun, "
            "as one; "
            "write srun before the command (in the job script too), or srun --ntasks=1 for a run of one "
            "process"
        )
    if "RANK" in environ:
        refuse_torchrun(environ)
    return LaunchedProcess(
        host=host_name(environ),
        job=environ.get("SLURM_JOB_ID", ""),
        restart=number(environ, "SLURM_RESTART_COUNT", 0),
    )


def refuse_torchrun(environ: Mapping[str, str]) -> None:
    """Raises UserError where torchrun, or what sets its variables, has started several processes: each would
    be a run by itself, in one folder."""
    if (size := number(environ, "WORLD_SIZE", 1)) > 1:
        raise UserError(
            f"WORLD_SIZE={size}: the variables of torchrun are not read. Start with srun or mpirun; or set, "
            "for each "
            "process, LLM_JAX_RANK=$RANK LLM_JAX_SIZE=$WORLD_SIZE LLM_JAX_LOCAL_RANK=$LOCAL_RANK "
            "LLM_JAX_LOCAL_SIZE=$LOCAL_WORLD_SIZE LLM_JAX_COORDINATOR=$MASTER_ADDR:PORT, a free port there"
        )


def number(environ: Mapping[str, str], key: str, default: int | None = None) -> int:
    """The whole number in an environment variable, or the default where it is unset. Raises UserError for
    anything else."""
    text = environ.get(key, "")
    if text == "" and default is not None:
        return default
    if not text.isdecimal() or len(text) > _DIGITS:
        raise UserError(
            f"{key}={text}: must be a whole number" + ("" if key in environ else "; it is not set")
        )
    return int(text)


def expanded(
    environ: Mapping[str, str], key: str, expand: Callable[[str], tuple[Any, ...]]
) -> tuple[Any, ...]:
    """The list that an environment variable holds in Slurm's short form; empty where it is unset. Raises
    UserError for anything else."""
    text = environ.get(key, "")
    try:
        return expand(text)
    except ValueError as error:
        raise UserError(
            f"{key}={text[:200]}: is not what Slurm writes ({error}). Start with srun, or unset it"
        ) from error


def host_name(environ: Mapping[str, str]) -> str:
    """This host's name in Slurm; outside Slurm its own."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def check_rank(rank: int, size: int, keys: str) -> None:
    """Raises UserError unless 0 <= rank < size. keys: the variables that gave them."""
    if not 0 <= rank < size:
        raise UserError(f"{keys}: rank {rank} of {size} processes; ranks are 0 to {size - 1}")


def from_own(environ: Mapping[str, str]) -> LaunchedProcess:
    """The task that the LLM_JAX_* variables describe."""
    rank, size = number(environ, "LLM_JAX_RANK"), number(environ, "LLM_JAX_SIZE")
    check_rank(rank, size, "LLM_JAX_RANK, LLM_JAX_SIZE")
    local_rank, local_size = (
        number(environ, "LLM_JAX_LOCAL_RANK", 0),
        number(environ, "LLM_JAX_LOCAL_SIZE", 1),
    )
    check_rank(local_rank, local_size, "LLM_JAX_LOCAL_RANK, LLM_JAX_LOCAL_SIZE")
    if local_size > size:
        raise UserError(f"LLM_JAX_LOCAL_SIZE={local_size}: more than LLM_JAX_SIZE={size}")
    coordinator, ports = own_coordinator(environ) if size > 1 else ("127.0.0.1", ())
    return LaunchedProcess(
        rank, size, local_rank, local_size,
        host=host_name(environ),
        coordinator=coordinator, ports=ports, job=environ.get("SLURM_JOB_ID", ""),
        restart=number(environ, "SLURM_RESTART_COUNT", 0),
        launcher="environment",
    )  # fmt: skip


def own_coordinator(environ: Mapping[str, str]) -> tuple[str, tuple[int, ...]]:
    """Host and ports in LLM_JAX_COORDINATOR. Raises UserError unless it is host:port."""
    text = environ.get("LLM_JAX_COORDINATOR", "")
    host, _, port = text.rpartition(":")
    named = re.fullmatch(r"[\w.-]+|\[[0-9A-Fa-f:.]+(%\w+)?\]|[0-9A-Fa-f:.]+", host)
    if not named or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"LLM_JAX_COORDINATOR={text}: must be host:port, the host of rank 0 and a free port there"
        )
    return host.strip("[]"), (int(port),)


def from_mpi(environ: Mapping[str, str], launcher: str, keys: tuple[str, str, str, str]) -> LaunchedProcess:
    """The task that an MPI launcher's variables describe. `keys`: those with rank, size, local rank and local
    size."""
    rank, size = number(environ, keys[0]), number(environ, keys[1])
    check_rank(rank, size, f"{keys[0]}, {keys[1]}")
    local_rank, local_size = number(environ, keys[2], rank), number(environ, keys[3], size)
    sessions = [environ.get(key, "") for key in ("OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE", "PMI_JOBID")]
    session = next(filter(None, sessions), "")
    job, restart = environ.get("SLURM_JOB_ID", ""), number(environ, "SLURM_RESTART_COUNT", 0)
    if "LLM_JAX_COORDINATOR" in environ:
        coordinator, ports = own_coordinator(environ)
    elif local_size == size:
        coordinator, ports = "127.0.0.1", hashed_ports(f"{launcher}.{job}.{session}.{restart}")
    else:
        raise UserError(
            f"{keys[1]}={size}: on several hosts the launcher doesn't tell where rank 0 is; set "
            "LLM_JAX_COORDINATOR=host:port for all processes "
            "(the host of rank 0, and a free port there), or start with srun"
        )
    host = host_name(environ)
    return LaunchedProcess(
        rank,
        size,
        local_rank,
        local_size,
        host,
        coordinator=coordinator,
        ports=ports,
        job=job,
        step=session,
        restart=restart,
        launcher=launcher,
    )


def from_slurm(environ: Mapping[str, str]) -> LaunchedProcess:
    """The task that the variables of a Slurm step (one `srun`) describe."""
    rank, size = number(environ, "SLURM_PROCID"), number(environ, "SLURM_STEP_NUM_TASKS")
    check_rank(rank, size, "SLURM_PROCID, SLURM_STEP_NUM_TASKS")
    job, step, restart = (
        environ.get("SLURM_JOB_ID", ""),
        environ["SLURM_STEP_ID"],
        number(environ, "SLURM_RESTART_COUNT", 0),
    )
    hosts = expanded(environ, "SLURM_STEP_NODELIST", expand_hosts)
    sizes = expanded(environ, "SLURM_STEP_TASKS_PER_NODE", expand_counts)
    node, local_rank = number(environ, "SLURM_NODEID", 0), number(environ, "SLURM_LOCALID", 0)
    if sizes and sum(sizes) != size:
        raise UserError(
            f"SLURM_STEP_TASKS_PER_NODE={environ['SLURM_STEP_TASKS_PER_NODE']}: are {sum(sizes)} tasks, and "
            f"SLURM_STEP_NUM_TASKS={size}. Start with srun, whose variables agree"
        )
    if sizes:
        check_rank(node, len(sizes), "SLURM_NODEID, SLURM_STEP_TASKS_PER_NODE")
        check_rank(local_rank, sizes[node], "SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE")
    return LaunchedProcess(
        rank, size, local_rank, sizes[node] if sizes else 1,
        host=host_name(environ),
        hosts=hosts, host_sizes=sizes if len(sizes) == len(hosts) else (),
        coordinator=hosts[0] if hosts else "127.0.0.1",
        ports=expanded(environ, "SLURM_STEP_RESV_PORTS", reserved_ports)
        or hashed_ports(f"{job}.{step}.{restart}"),
        job=job, step=step, restart=restart, launcher="slurm",
    )  # fmt: skip


def expand_hosts(text: str) -> tuple[str, ...]:
    """The host names in Slurm's short form. (`scontrol show hostnames` prints them too, but a container often
    has no scontrol.) Raises ValueError for anything else.

    >>> expand_hosts("login,rack[1-2]n[03-04]")
    ('login', 'rack1n03', 'rack1n04', 'rack2n03', 'rack2n04')
    """
    part = r"(?:[^,\[\]\s]|\[[0-9,-]+\])+"
    if text and not re.fullmatch(f"{part}(,{part})*", text):
        raise ValueError("not a list of hosts, node[1-3],login")
    names: list[str] = []
    for one in re.findall(part, text):
        choices = [
            expand_range(p[1:-1]) if p.startswith("[") else [p] for p in re.findall(r"\[[^\]]*\]|[^\[]+", one)
        ]
        check_count(math.prod(map(len, choices)))
        names += ["".join(chosen) for chosen in product(*choices)]
    return tuple(names)


def expand_range(text: str) -> list[str]:
    """The numbers in a list of ranges: "1,08-10" gives 1, 08, 09, 10. Raises ValueError for anything else."""
    numbers = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if high < low:
            raise ValueError(f"the range {part} is empty")
        check_count(high - low)
        numbers += [f"{i:0{len(first)}d}" for i in range(low, high + 1)]
    return numbers


def expand_counts(text: str) -> tuple[int, ...]:
    """The tasks on each node, from Slurm's short form. Raises ValueError for anything else.

    >>> expand_counts("4(x2),1")
    (4, 4, 1)
    """
    if text and not re.fullmatch(r"\d+(\(x\d+\))?(,\d+(\(x\d+\))?)*", text):
        raise ValueError("not counts, 4(x2),1")
    found = [(int(count), int(times or 1)) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text)]
    check_count(sum(times for _, times in found))
    return tuple(count for count, times in found for _ in range(times))


def reserved_ports(text: str) -> tuple[int, ...]:
    """The ports that Slurm reserved for a step (srun --resv-ports), from text like "12000-12003,12010".
    Raises ValueError for anything else."""
    ports = tuple(int(port) for port in expand_range(text)) if text else ()
    if not all(0 < port < 65536 for port in ports):
        raise ValueError("ports are 1 to 65535")
    return ports


def check_count(count: int) -> None:
    """Raises ValueError for more hosts, or ports, than there are."""
    if count > MOST:
        raise ValueError(f"{count:,} are too many")


def hashed_ports(key: str) -> tuple[int, ...]:
    """PORTS ports that follow from a key: equal in all processes of a run, and different from other runs'
    with high probability."""
    return tuple(FIRST_PORT + zlib.crc32(f"{key}.{i}".encode()) % PORT_COUNT for i in range(PORTS))
