"""How the processes of a run find each other: rank 0 listens, the others come, and all know that they are of the same run.

Two jobs on a host may come to the same port: whoever listens there tells strangers to go on to the next one.
"""

from __future__ import annotations

import collections
import selectors
import socket
import time

from llm_jax.core.errors import Fault
from llm_jax.processes.address import coordinator_address
from llm_jax.processes.connection import SEND_SECONDS, Link, Message
from llm_jax.processes.launcher import Task, process_name

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0
"""Whoever listens and doesn't greet for so long is not one of us."""
PAUSE_SECONDS = 0.1


def meet(task: Task, seconds: float) -> tuple[list[str], dict[int, Link]]:
    """The hosts of all processes by rank, and the links to them (rank 0), or to rank 0 (the others).

    Raises Fault, naming who is missing, when not all have come within `seconds`.
    """
    if task.size == 1:
        return [task.host], {}
    return gather(task, seconds) if task.rank == 0 else call(task, seconds)


# Rank 0:


def listener(task: Task) -> socket.socket:
    """A socket at the first of the task's ports that is free."""
    for port in task.ports:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
            return socket.create_server(("", port), backlog=1024)
        except OSError as error:
            reason = error.strerror
    raise Fault(f"{task.name}: can't listen at any of the ports {', '.join(map(str, task.ports))} ({reason}): other programs have them; start again")


def gather(task: Task, seconds: float) -> tuple[list[str], dict[int, Link]]:
    """Waits until all others have come."""
    deadline = time.monotonic() + seconds
    arrived: dict[int, tuple[Link, str]] = {}
    with listener(task) as server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(arrived) < task.size - 1:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                give_up(task, arrived, f"did not come within {seconds:g} s (cluster.start_seconds); look at its output and at its host")
            for key, _ in ready:
                if key.fileobj is server:
                    link = Link(server.accept()[0])
                    selector.register(link, selectors.EVENT_READ, link)
                    continue
                link = key.data
                for message in link.receive():
                    refusal = greet(task, message, arrived)
                    if refusal:
                        link.send({"kind": "refused", **refusal})
                        link.closed = True
                    else:
                        arrived[message["rank"]] = link, message["host"]
                        link.send({"kind": "here"})
                if link.closed:
                    selector.unregister(link)
                    link.close()
                    gone = [rank for rank, (its, _) in arrived.items() if its is link]
                    if gone:
                        host = arrived.pop(gone[0])[1]
                        give_up(task, arrived, "ended before all processes had met; its own output may say why", (gone[0], host))
    hosts = [task.host, *(arrived[rank][1] for rank in range(1, task.size))]
    for link, _ in arrived.values():
        link.send({"kind": "welcome", "hosts": hosts})
    return hosts, {rank: link for rank, (link, _) in arrived.items()}


def greet(task: Task, message: Message, arrived: dict[int, tuple[Link, str]]) -> Message | None:
    """Why somebody who comes is not let in; None: it is."""
    if message.get("token") != task.token:
        return {"why": ""}
    rank = message["rank"]
    if rank in arrived or not 0 < rank < task.size:
        return {"why": f"rank {rank} came twice: two processes were started with the same rank"}
    return None


def give_up(task: Task, arrived: dict[int, tuple[Link, str]], what: str, who: tuple[int, str] | None = None) -> None:
    """Tells all who have come, and raises Fault."""
    if who is None:
        rank = next(rank for rank in range(1, task.size) if rank not in arrived)
        who = rank, missing_host(task, rank, [task.host, *(host for _, host in arrived.values())])
    missing = task.size - 1 - len(arrived)
    more = f" (nor did {missing - 1} more of {task.size} processes)" if missing > 1 else ""
    text = f"{process_name(*who)} {what}{more}"
    for link, _ in arrived.values():
        link.send({"kind": "over", "text": text})
        link.close()
    raise Fault(text)


def missing_host(task: Task, rank: int, present: list[str]) -> str:
    """Where a process that didn't come should be, as far as that is known: on a host of which others are missing too."""
    here = collections.Counter(present)
    short = [host for host, size in zip(task.hosts, task.host_sizes, strict=True) if here[host] < size] if task.host_sizes else []
    if set(task.host_sizes) == {1}:
        return task.hosts[rank]  # a process a host: in order
    return " or ".join(short[:3])


# The others:


def call(task: Task, seconds: float) -> tuple[list[str], dict[int, Link]]:
    """Looks for rank 0 at one port after another, and waits with it for the others."""
    deadline = time.monotonic() + seconds
    reason = ""
    while time.monotonic() < deadline:
        try:
            address = coordinator_address(task)
            for port in task.ports:
                link = try_port(task, address, port)
                if isinstance(link, Link):
                    return wait(task, link, deadline + ANSWER_SECONDS)
                reason = reason if "stranger" in link else f"{address}:{port}: {link}"
        except OSError as error:
            reason = str(error)
        time.sleep(PAUSE_SECONDS)
    raise Fault(
        f"{task.name}: {process_name(0, task.coordinator)} was not found within {seconds:g} s (cluster.start_seconds): {reason}; "
        "see whether it was started, and whether hosts can reach each other at these ports"
    )


def try_port(task: Task, address: str, port: int) -> Link | str:
    """A link to rank 0, or what is there instead. Raises Fault where rank 0 refuses."""
    try:
        link = Link(socket.create_connection((address, port), CONNECT_SECONDS))
    except OSError as error:
        return error.strerror or str(error)
    link.connection.settimeout(ANSWER_SECONDS)
    link.send({"kind": "hello", "token": task.token, "rank": task.rank, "host": task.host})
    message = link.next() or {}
    if message.get("kind") == "here":
        return link
    link.close()
    if message.get("why"):
        raise Fault(message["why"])
    return "a stranger listens there"


def wait(task: Task, link: Link, deadline: float) -> tuple[list[str], dict[int, Link]]:
    """Waits until rank 0 says that all are there."""
    link.connection.settimeout(max(0.1, deadline - time.monotonic()))
    message = link.next() or {}
    link.connection.settimeout(SEND_SECONDS)
    if message.get("kind") == "welcome":
        return message["hosts"], {0: link}
    if message.get("kind") == "over":
        raise Fault(message["text"])
    raise Fault(f"{process_name(0, task.coordinator)} ended before all processes had met; its own output may say why")
