"""The rendezvous of a run's processes: rank 0 listens, the others connect, and compare a token that all
processes of one run have.

Two jobs on one host may choose the same port: a listener refuses processes of another run, which then try the
next port.
"""

from __future__ import annotations

import collections
import selectors
import socket
import time
from typing import NoReturn

from llm_jax.core.errors import Fault
from llm_jax.processes.address import coordinator_address
from llm_jax.processes.connection import SEND_SECONDS, Connection
from llm_jax.processes.launcher import LaunchedProcess, process_name
from llm_jax.processes.messages import Accepted, AllConnected, Hello, Refused, RendezvousFailed

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0
"""A listener that has not answered for so long does not belong to this run."""
PAUSE_SECONDS = 0.1
OTHER_PROGRAM = "another program listens there"


def connect_all(task: LaunchedProcess, seconds: float) -> tuple[list[str], dict[int, Connection]]:
    """The hosts of all processes by rank, and the connections: in rank 0 to each other rank, in the others to
    rank 0.

    Raises Fault, naming the process that is missing, when not all have connected within `seconds`.
    """
    if task.size == 1:
        return [task.host], {}
    return accept_all(task, seconds) if task.rank == 0 else connect_to_first(task, seconds)


# In rank 0:


def open_listener(task: LaunchedProcess) -> socket.socket:
    """A listening socket at the first of the task's ports that is free. Raises Fault where none is."""
    for port in task.ports:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
                )
            return socket.create_server(("", port), backlog=1024)
        except OSError as error:
            reason = error.strerror
    ports = ", ".join(map(str, task.ports))
    raise Fault(
        f"{task.name}: can't listen at any of the ports {ports} ({reason}): other programs use them. "
        "Start the run again."
    )


def accept_all(task: LaunchedProcess, seconds: float) -> tuple[list[str], dict[int, Connection]]:
    """Waits until all other processes have connected: the hosts by rank, and a connection to each. Raises
    Fault after `seconds`."""
    deadline = time.monotonic() + seconds
    accepted: dict[int, tuple[Connection, str]] = {}
    with open_listener(task) as server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(accepted) < task.size - 1:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                fail(
                    task,
                    accepted,
                    f"did not connect within {seconds:g} s (cluster.start_seconds); see its output and "
                    "its host",
                )
            for key, _ in ready:
                if key.fileobj is server:
                    connection = Connection(server.accept()[0])
                    selector.register(connection, selectors.EVENT_READ, connection)
                    continue
                connection = key.data
                for message in connection.receive():
                    refusal = refuse(task, message, accepted) if isinstance(message, Hello) else Refused("")
                    if refusal:
                        connection.send(refusal)
                        connection.closed = True
                    else:
                        assert isinstance(message, Hello)
                        accepted[message.rank] = connection, message.host
                        connection.send(Accepted())
                if connection.closed:
                    selector.unregister(connection)
                    connection.close()
                    lost = [rank for rank, (its, _) in accepted.items() if its is connection]
                    if lost:
                        host = accepted.pop(lost[0])[1]
                        fail(
                            task,
                            accepted,
                            "ended before all processes had connected; its own output may have the reason",
                            (lost[0], host),
                        )
    hosts = [task.host, *(accepted[rank][1] for rank in range(1, task.size))]
    for connection, _ in accepted.values():
        connection.send(AllConnected(hosts))
    return hosts, {rank: connection for rank, (connection, _) in accepted.items()}


def refuse(
    task: LaunchedProcess, hello: Hello, accepted: dict[int, tuple[Connection, str]]
) -> Refused | None:
    """The refusal of a process of another run, or of a rank that has connected already; None for a process to
    accept."""
    if hello.token != task.token:
        return Refused("")
    if hello.rank in accepted or not 0 < hello.rank < task.size:
        return Refused(
            f"rank {hello.rank} connected twice: two processes were started with this rank. Start each "
            "with a rank of its own."
        )
    return None


def fail(
    task: LaunchedProcess,
    accepted: dict[int, tuple[Connection, str]],
    what: str,
    who: tuple[int, str] | None = None,
) -> NoReturn:
    """Sends the failure to all processes that have connected, and raises it as Fault.

    who: rank and host of the culprit; None: the first process that is missing.
    """
    if who is None:
        rank = next(rank for rank in range(1, task.size) if rank not in accepted)
        who = rank, missing_host(task, rank, [task.host, *(host for _, host in accepted.values())])
    missing = task.size - 1 - len(accepted)
    more = f" ({missing - 1} more of {task.size} processes are missing too)" if missing > 1 else ""
    text = f"{process_name(*who)} {what}{more}"
    for connection, _ in accepted.values():
        connection.send(RendezvousFailed(text))
        connection.close()
    raise Fault(text)


def missing_host(task: LaunchedProcess, rank: int, present: list[str]) -> str:
    """The host where a process that didn't connect should run, as far as the launcher's environment tells:
    one with processes missing."""
    here = collections.Counter(present)
    short = (
        [host for host, size in zip(task.hosts, task.host_sizes, strict=True) if here[host] < size]
        if task.host_sizes
        else []
    )
    if set(task.host_sizes) == {1}:
        return task.hosts[rank]  # a process a host: in order
    return " or ".join(short[:3])


# In the other processes:


def connect_to_first(task: LaunchedProcess, seconds: float) -> tuple[list[str], dict[int, Connection]]:
    """Tries to connect to rank 0 at one port after another, and then waits for the other processes. Raises
    Fault after `seconds`."""
    deadline = time.monotonic() + seconds
    reason = ""
    while time.monotonic() < deadline:
        try:
            address = coordinator_address(task)
            for port in task.ports:
                found = try_port(task, address, port)
                if isinstance(found, Connection):
                    return wait_for_others(task, found, deadline + ANSWER_SECONDS)
                reason = reason if found == OTHER_PROGRAM else f"{address}:{port}: {found}"
        except OSError as error:
            reason = str(error)
        time.sleep(PAUSE_SECONDS)
    raise Fault(
        f"{task.name}: {process_name(0, task.coordinator)} was not found within {seconds:g} s "
        f"(cluster.start_seconds): {reason}; "
        "check that it was started, and that hosts can reach each other at these ports"
    )


def try_port(task: LaunchedProcess, address: str, port: int) -> Connection | str:
    """A connection to rank 0, or why there is none at this port. Raises Fault where rank 0 refuses with a
    reason."""
    try:
        connection = Connection(socket.create_connection((address, port), CONNECT_SECONDS))
    except OSError as error:
        return error.strerror or str(error)
    connection.socket.settimeout(ANSWER_SECONDS)
    connection.send(Hello(task.token, task.rank, task.host))
    message = connection.receive_one()
    if isinstance(message, Accepted):
        return connection
    connection.close()
    if isinstance(message, Refused) and message.reason:
        raise Fault(message.reason)
    return OTHER_PROGRAM


def wait_for_others(
    task: LaunchedProcess, connection: Connection, deadline: float
) -> tuple[list[str], dict[int, Connection]]:
    """Waits until rank 0 reports that all processes have connected. Raises Fault when it reports a failure,
    or doesn't report in time."""
    connection.socket.settimeout(max(0.1, deadline - time.monotonic()))
    message = connection.receive_one()
    connection.socket.settimeout(SEND_SECONDS)
    if isinstance(message, AllConnected):
        return message.hosts, {0: connection}
    if isinstance(message, RendezvousFailed):
        raise Fault(message.text)
    raise Fault(
        f"{process_name(0, task.coordinator)} ended before all processes had connected; its own output "
        "may have the reason"
    )
