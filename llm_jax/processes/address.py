"""What a process has to find out from DNS or Slurm: the address of rank 0's host, and when Slurm ends the
job."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import subprocess
import time

from llm_jax.processes.launcher import LaunchedProcess


def coordinator_address(task: LaunchedProcess) -> str:
    """An address of the coordinator's host that the other processes can connect to. Raises OSError where its
    name can't be resolved.

    /etc/hosts often has a host's own name at 127.0.1.1: in runs over several hosts that address is not used,
    and Slurm's is.
    """
    if len(task.hosts) <= 1 and task.launcher != "environment":
        return "127.0.0.1"
    try:
        found = [
            str(info[4][0]) for info in socket.getaddrinfo(task.coordinator, None, type=socket.SOCK_STREAM)
        ]
    except OSError:
        found, unknown = [], True
    else:
        unknown = False
    reachable = [address for address in found if not ipaddress.ip_address(address.split("%")[0]).is_loopback]
    if reachable or (found and task.launcher != "slurm"):
        return (reachable or found)[0]
    from_slurm = slurm_address(task.coordinator)
    if from_slurm and from_slurm != task.coordinator:
        return from_slurm
    why = (
        "is not a name that this host knows (DNS, /etc/hosts)"
        if unknown
        else "is a loopback address here, which no other host can reach"
    )
    raise OSError(
        f"{task.coordinator} {why}, and Slurm has no address for it (scontrol show node {task.coordinator})"
    )


def slurm_address(node: str) -> str | None:
    """The address by which Slurm reaches a node; None where Slurm can't be asked."""
    return slurm_field("node", node, "NodeAddr")


def end_of_job(job: str) -> float | None:
    """When the job's time limit ends it, in seconds since 1970; None where there is no limit, or Slurm can't
    be asked.

    Slurm's present answer counts, since a limit may be extended; SLURM_JOB_END_TIME, where there is no
    answer.
    """
    at_start = os.environ.get("SLURM_JOB_END_TIME", "") if job else ""
    now = slurm_field("job", job, "EndTime") if job else None
    try:
        return time.mktime(time.strptime(now or "", "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return float(at_start) if at_start.isdecimal() and now is None else None


def slurm_field(kind: str, name: str, field: str) -> str | None:
    """A field that `scontrol show KIND NAME` prints; None where scontrol isn't there (as in a container) or
    doesn't answer."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", kind, name], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(rf"\b{field}=(\S+)", shown)
    return found[1] if found else None
