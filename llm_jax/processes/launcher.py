"""Reads from the launcher's environment variables which process of a run this is, on which host, and where
the rendezvous is. Imports no JAX.

`srun` sets all that is needed. Another launcher, or a test, starts N processes with

  LLM_JAX_RANK=0..N-1  LLM_JAX_SIZE=N  LLM_JAX_COORDINATOR=host:port     (rank 0's host, a free port there)

and, where several of them share a host, LLM_JAX_LOCAL_RANK and LLM_JAX_LOCAL_SIZE (else each uses all GPUs
that it sees). Open MPI's and PMI's variables (mpirun, mpiexec) give rank and size; over several hosts they
need LLM_JAX_COORDINATOR too.
"""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from llm_jax.core.errors import UserError

PORTS = 8
"""So many ports are tried, one after another, where the first are taken."""
FIRST_PORT, PORT_COUNT = 20000, 12000
"""Below those that Linux gives to outgoing connections (32768 on)."""


@dataclass(frozen=True)
class Task:
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


def read_task(environ: Mapping[str, str]) -> Task:
    """The task that environment variables describe.

    Raises UserError where they contradict each other, or belong to a job of several tasks whose process was
    started without srun.
    """
    if "LLM_JAX_SIZE" in environ or "LLM_JAX_RANK" in environ:
        return from_own(environ)
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
    return Task(
        host=host_name(environ),
        job=environ.get("SLURM_JOB_ID", ""),
        restart=number(environ, "SLURM_RESTART_COUNT", 0),
    )


def number(environ: Mapping[str, str], key: str, default: int | None = None) -> int:
    """The whole number in an environment variable, or the default where it is unset. Raises UserError for
    anything else."""
    text = environ.get(key, "")
    if text == "" and default is not None:
        return default
    if not text.isdigit():
        raise UserError(
            f"{key}={text}: must be a whole number" + ("" if key in environ else "; it is not set")
        )
    return int(text)


def host_name(environ: Mapping[str, str]) -> str:
    """This host's name in Slurm; outside Slurm its own."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def check_rank(rank: int, size: int, keys: str) -> None:
    """Raises UserError unless 0 <= rank < size. keys: the variables that gave them."""
    if not 0 <= rank < size:
        raise UserError(f"{keys}: rank {rank} of {size} processes; ranks are 0 to {size - 1}")


def from_own(environ: Mapping[str, str]) -> Task:
    """The task that the LLM_JAX_* variables describe."""
    rank, size = number(environ, "LLM_JAX_RANK"), number(environ, "LLM_JAX_SIZE")
    check_rank(rank, size, "LLM_JAX_RANK, LLM_JAX_SIZE")
    coordinator, ports = own_coordinator(environ) if size > 1 else ("127.0.0.1", ())
    return Task(
        rank, size, number(environ, "LLM_JAX_LOCAL_RANK", 0), number(environ, "LLM_JAX_LOCAL_SIZE", 1),
        host=host_name(environ),
        coordinator=coordinator, ports=ports, job=environ.get("SLURM_JOB_ID", ""),
        restart=number(environ, "SLURM_RESTART_COUNT", 0),
        launcher="environment",
    )  # fmt: skip


def own_coordinator(environ: Mapping[str, str]) -> tuple[str, tuple[int, ...]]:
    """Host and ports in LLM_JAX_COORDINATOR. Raises UserError unless it is host:port."""
    text = environ.get("LLM_JAX_COORDINATOR", "")
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"LLM_JAX_COORDINATOR={text}: must be host:port, the host of rank 0 and a free port there"
        )
    return host.strip("[]"), (int(port),)


def from_mpi(environ: Mapping[str, str], launcher: str, keys: tuple[str, str, str, str]) -> Task:
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
    return Task(
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


def from_slurm(environ: Mapping[str, str]) -> Task:
    """The task that the variables of a Slurm step (one `srun`) describe."""
    rank, size = number(environ, "SLURM_PROCID"), number(environ, "SLURM_STEP_NUM_TASKS")
    check_rank(rank, size, "SLURM_PROCID, SLURM_STEP_NUM_TASKS")
    job, step, restart = (
        environ.get("SLURM_JOB_ID", ""),
        environ["SLURM_STEP_ID"],
        number(environ, "SLURM_RESTART_COUNT", 0),
    )
    hosts = expand_hosts(environ.get("SLURM_STEP_NODELIST", ""))
    sizes = expand_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = number(environ, "SLURM_NODEID", 0)
    return Task(
        rank, size, number(environ, "SLURM_LOCALID", 0), sizes[node] if node < len(sizes) else 1,
        host=host_name(environ),
        hosts=hosts, host_sizes=sizes if len(sizes) == len(hosts) else (),
        coordinator=hosts[0] if hosts else "127.0.0.1",
        ports=reserved_ports(environ.get("SLURM_STEP_RESV_PORTS", ""))
        or hashed_ports(f"{job}.{step}.{restart}"),
        job=job, step=step, restart=restart, launcher="slurm",
    )  # fmt: skip


def expand_hosts(text: str) -> tuple[str, ...]:
    """The host names in Slurm's short form. (`scontrol show hostnames` prints them too, but a container often
    has no scontrol.)

    >>> expand_hosts("login,rack[1-2]n[03-04]")
    ('login', 'rack1n03', 'rack1n04', 'rack2n03', 'rack2n04')
    """
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        choices = [
            expand_range(p[1:-1]) if p.startswith("[") else [p]
            for p in re.findall(r"\[[^\]]*\]|[^\[]+", part)
        ]
        names += ["".join(chosen) for chosen in product(*choices)]
    return tuple(names)


def expand_range(text: str) -> list[str]:
    """The numbers in a list of ranges: "1,08-10" gives 1, 08, 09, 10."""
    numbers = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += [f"{i:0{len(first)}d}" for i in range(int(first), int(last or first) + 1)]
    return numbers


def expand_counts(text: str) -> tuple[int, ...]:
    """The tasks on each node, from Slurm's short form.

    >>> expand_counts("4(x2),1")
    (4, 4, 1)
    """
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return tuple(int(count) for count, times in found for _ in range(int(times or 1)))


def reserved_ports(text: str) -> tuple[int, ...]:
    """The ports that Slurm reserved for a step (srun --resv-ports), from text like "12000-12003,12010"."""
    return tuple(int(port) for port in expand_range(text)) if text else ()


def hashed_ports(key: str) -> tuple[int, ...]:
    """PORTS ports that follow from a key: equal in all processes of a run, and different from other runs'
    with high probability."""
    return tuple(FIRST_PORT + zlib.crc32(f"{key}.{i}".encode()) % PORT_COUNT for i in range(PORTS))
