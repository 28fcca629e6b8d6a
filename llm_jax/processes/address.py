"""What has to be asked for: the address of rank 0's host, and when Slurm ends the job."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import subprocess
import time

from llm_jax.processes.launcher import Task


def coordinator_address(task: Task) -> str:
    """An address of the coordinator's host that the other processes can connect to. Raises OSError where its name says nothing.

    /etc/hosts often has a host's own name at 127.0.1.1: over several hosts that is not taken, and Slurm is asked.
    """
    if len(task.hosts) <= 1 and task.launcher != "environment":
        return "127.0.0.1"
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(task.coordinator, None, type=socket.SOCK_STREAM)]
    except OSError:
        found, unknown = [], True
    else:
        unknown = False
    reachable = [address for address in found if not ipaddress.ip_address(address.split("%")[0]).is_loopback]
    if reachable or (found and task.launcher != "slurm"):
        return (reachable or found)[0]
    told = slurm_address(task.coordinator)
    if told and told != task.coordinator:
        return told
    why = "is not a name that this host knows (DNS, /etc/hosts)" if unknown else "is a loopback address here, which no other host can reach"
    raise OSError(f"{task.coordinator} {why}, and Slurm has no address for it (scontrol show node {task.coordinator})")


def slurm_address(node: str) -> str | None:
    """The address by which Slurm reaches a node."""
    return slurm_field("node", node, "NodeAddr")


def end_of_job(job: str) -> float | None:
    """When the job's time limit ends it, in seconds since 1970; None where there is no limit, or Slurm can't be asked."""
    told = os.environ.get("SLURM_JOB_END_TIME", "") if job else ""
    asked = slurm_field("job", job, "EndTime") if job else None
    try:
        return time.mktime(time.strptime(asked or "", "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return float(told) if told.isdigit() and asked is None else None


def slurm_field(kind: str, name: str, field: str) -> str | None:
    """What Slurm says of a node or a job; None where it can't be asked, as in a container without its commands."""
    try:
        shown = subprocess.run(["scontrol", "show", kind, name], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(rf"\b{field}=(\S+)", shown)
    return found[1] if found else None
