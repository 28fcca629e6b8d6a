"""Starts JAX over the processes of a group, which then have one set of devices and collectives between
them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from llm_jax.processes.address import coordinator_address
from llm_jax.processes.config import ClusterConfig
from llm_jax.processes.group import Group
from llm_jax.processes.local_gpus import local_devices

HEARTBEAT_SECONDS = 100
"""JAX aborts a process that it hasn't heard of for so long, without naming the culprit: the group's own limit
must be shorter."""
SHUTDOWN_SECONDS = 60


@contextlib.contextmanager
def started(group: Group, config: ClusterConfig) -> Iterator[None]:
    """Runs JAX's own service between the processes while the context lasts. It has to start before JAX looks
    for devices.

    Does nothing in a run of one process. After an exception nothing is shut down: that would wait for the
    processes that failed, and the group ends them all.
    """
    if group.task.size == 1:
        yield
        return
    import jax  # after the group has installed its signal handlers

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from the group
    address = group.exchange(
        "JAX's service", f"{coordinator_address(group.task)}:{free_port()}" if group.task.rank == 0 else None
    )[0]
    jax.distributed.initialize(
        address,
        group.task.size,
        group.task.rank,
        local_device_ids=local_devices(group.task, os.environ),
        cluster_detection_method="deactivate",
        initialization_timeout=round(config.start_seconds),
        heartbeat_timeout_seconds=max(HEARTBEAT_SECONDS, round(3 * config.beat_seconds)),
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
    yield
    group.mark("end")
    group.exchange("JAX's end")
    jax.distributed.shutdown()


def free_port() -> int:
    """A port of this host that nothing listens on. (JAX itself would derive one from Slurm's job number, as
    other steps of the job do.)"""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]
