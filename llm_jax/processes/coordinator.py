"""The coordinator of a run: the state of all processes in rank 0, and the decisions that follow from it.
docs/processes.md describes the protocol.

It turns messages into messages. It has no sockets, no threads and no clock, so tests can drive it: every
method takes the time.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llm_jax.processes.config import ClusterConfig
from llm_jax.processes.fault_log import Record
from llm_jax.processes.launcher import process_name
from llm_jax.processes.messages import (
    AllDone,
    BarrierBlocked,
    Beat,
    BlockBarrier,
    EndForFault,
    EndForUserError,
    Exchange,
    Exchanged,
    Goodbye,
    LeaveNow,
    Message,
    ReportFault,
    ReportUserError,
    StopAt,
    StopRequested,
)

GRACE_SECONDS = 1.0
"""How long a reported exception waits for its cause: the death of a process raises exceptions in collectives
of others, sometimes sooner."""
KILLED = "ended without an error: it was killed, ran out of memory or crashed (see its output and Slurm's)"
USER_ERROR_SECONDS = 0.5
"""How long a user error waits for rank 0, which usually raises the error too."""


@dataclass
class ProcessState:
    """The state of a process, from the last messages that the coordinator received of it."""

    rank: int
    host: str
    last_heard: float
    """When its last message came, in seconds of `time.monotonic`, as all times here."""
    phase: str = "start"
    step: int = 0
    batch: str | None = None
    progress: int = 0
    """How many marks, polls and exchanges it has passed since the start. All processes pass equal ones, in
    one order."""
    idle_seconds: float = 0.0
    """Seconds since its last progress, when its last beat was sent."""
    location: str = ""
    """Where in the code its main thread is, if it makes no progress."""
    running: bool = True
    """Until it says goodbye."""

    @property
    def name(self) -> str:
        """The process as messages name it."""
        return process_name(self.rank, self.host)


@dataclass
class PendingExchange:
    """An exchange that some processes have reached, and not yet all."""

    name: str
    first: int
    """The rank that reached it first."""
    begun: float
    seconds: float | None
    values: dict[int, Any] = field(default_factory=dict)


class Coordinator:
    """Receives the messages of all processes, and puts the messages to them into `outbox`."""

    def __init__(
        self,
        hosts: list[str],
        config: ClusterConfig,
        job_fields: Record,
        record: Callable[[Record], None],
        now: float,
        batch_of: Callable[[int], str | None] = lambda step: None,
    ):
        """hosts: by rank. job_fields: what all fault records of this start have in common. record: is called
        with a fault to keep.

        batch_of: the fingerprint of a step's batch, if rank 0 knows it.
        """
        self.processes = [ProcessState(rank, host, now) for rank, host in enumerate(hosts)]
        self.config, self.job_fields, self.record, self.batch_of = config, job_fields, record, batch_of
        self.outbox: list[tuple[int, Message]] = []
        """Messages to send, each with the rank that receives it."""
        self.exchanges: dict[int, PendingExchange] = {}
        self.reported: tuple[float, Record] | None = None
        """The first reported exception, and when it was reported."""
        self.user_errors: dict[int, str] = {}
        self.first_user_error = 0.0
        """When the first of them was reported."""
        self.unanswered: set[int] = set()
        """Ranks that were sent BlockBarrier and have not answered."""
        self.answers: list[BarrierBlocked] = []
        self.stop: StopRequested | None = None
        """The first request to stop, and the process that sent it."""
        self.stop_from = self.processes[0]
        self.leaving = False
        """Whether LeaveNow was sent to all."""
        self.ended = False
        """Whether all were sent the end of the run: EndForFault, EndForUserError or AllDone."""

    def broadcast(self, message: Message) -> None:
        """Sends a message to all processes."""
        self.outbox += [(process.rank, message) for process in self.processes]

    def receive(self, rank: int, message: Message, now: float) -> None:
        """Handles a message of a process. After the end of the run it does nothing."""
        process = self.processes[rank]
        process.last_heard = now
        if self.ended:
            return
        match message:
            case Beat():
                process.phase, process.step, process.batch = message.phase, message.step, message.batch
                process.progress, process.idle_seconds, process.location = (
                    message.progress,
                    message.idle_seconds,
                    message.location,
                )
            case Exchange():
                self.on_exchange(process, message, now)
            case StopRequested():
                self.on_stop_requested(process, message)
            case BarrierBlocked():
                self.answers.append(message)
                self.unanswered.discard(rank)
                self.decide_stop()
            case ReportFault():
                if not self.reported:
                    fault = message.fault
                    self.reported = (
                        now,
                        {**fault, **self.job_fields, "batch": fault["batch"] or self.batch_of(fault["step"])},
                    )
            case ReportUserError():
                self.first_user_error = self.first_user_error if self.user_errors else now
                self.user_errors[rank] = message.text
            case Goodbye():
                self.on_goodbye(process)
            case _:
                raise TypeError(f"{process.name} sent {message}, which no process sends to the coordinator")

    def connection_lost(self, rank: int) -> None:
        """Handles the end of a process's connection: a fault, unless the process has said goodbye or
        leaves."""
        process = self.processes[rank]
        if not self.ended and process.running:
            if self.leaving:
                return self.on_goodbye(process)
            self.end_naming("killed", process, KILLED)

    def check_clock(self, now: float) -> None:
        """Ends the run where time has run out. To be called often, when no message waits to be received."""
        if self.ended:
            return
        if self.reported and now - self.reported[0] >= GRACE_SECONDS:
            return self.end(self.reported[1])
        if self.user_errors and (now - self.first_user_error >= USER_ERROR_SECONDS or 0 in self.user_errors):
            return self.end_for_user_error()
        for process in self.processes[1:]:
            if process.running and now - process.last_heard > self.config.beat_seconds:
                return self.end_naming("silent", process, silence(now - process.last_heard, self.config))
        for exchange in self.exchanges.values():
            if exchange.seconds is not None and now - exchange.begun > exchange.seconds:
                return self.end_late(exchange, now)
            gone = next((p for p in self.processes if not p.running and p.rank not in exchange.values), None)
            if gone and not self.leaving:
                waiting = self.processes[exchange.first].name
                return self.end_naming(
                    "apart", gone, f"has reached its end, while {waiting} waits for it at {exchange.name!r}"
                )
        self.check_hang(now)

    def shift_clock(self, seconds: float) -> None:
        """Rank 0 was suspended for so long: the silence of others meanwhile doesn't count."""
        for process in self.processes:
            process.last_heard += seconds
        for exchange in self.exchanges.values():
            exchange.begun += seconds

    def check_hang(self, now: float) -> None:
        """Ends a run in which no process makes progress. The culprit is the process that is behind all
        others."""
        running = [process for process in self.processes if process.running]
        idle = {process.rank: process.idle_seconds + now - process.last_heard for process in running}
        if running and all(idle[process.rank] > self.config.limit(process.phase) for process in running):
            # The processes that wait for the culprit wait at one place.
            locations = collections.Counter(process.location for process in running)
            culprit = min(
                running,
                key=lambda process: (process.progress, locations[process.location], -idle[process.rank]),
            )
            others = ", while the others wait for it" if len(running) > 1 else ""
            key = "compile_seconds" if culprit.phase == "compile" else "hang_seconds"
            limit = f"cluster.{key}={self.config.limit(culprit.phase):g}"
            where = f"; it is at {culprit.location}" if culprit.location else ""
            stacks = "; all stacks are in the run folder's faults/"
            seconds = f"made no progress for {idle[culprit.rank]:.0f} s"
            self.end_naming("hang", culprit, f"{seconds} ({limit}){others}{where}{stacks}")

    # How a run ends:

    def end_naming(self, kind: str, process: ProcessState, message: str) -> None:
        """Ends the run with a fault that the coordinator found in a process."""
        where = {
            "phase": process.phase,
            "step": process.step,
            "batch": process.batch or self.batch_of(process.step),
        }
        self.end(
            {
                "kind": kind,
                "rank": process.rank,
                "host": process.host,
                **self.job_fields,
                **where,
                "message": message,
            }
        )

    def end(self, fault: Record) -> None:
        """Records the fault, sends it to all processes, and ends the run."""
        self.ended = True
        fault = {"time": time.time(), **fault}
        self.record(fault)
        self.broadcast(EndForFault(fault))

    def end_for_user_error(self) -> None:
        """Ends the run with the user error of the lowest rank that reported one."""
        rank = min(self.user_errors)
        self.ended = True
        self.broadcast(EndForUserError(rank, self.processes[rank].host, self.user_errors[rank]))

    def end_late(self, exchange: PendingExchange, now: float) -> None:
        """Ends the run because an exchange took longer than its limit, naming the first process that is
        missing."""
        missing = [process for process in self.processes if process.rank not in exchange.values]
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        self.end_naming(
            "late",
            missing[0],
            f"did not reach {exchange.name!r} within {now - exchange.begun:.0f} s{more}; the others wait "
            "there",
        )

    def on_goodbye(self, process: ProcessState) -> None:
        """A process has reached its end; after the last one, all monitor threads end."""
        process.running = False
        self.unanswered.discard(process.rank)
        self.decide_stop()
        if not any(p.running for p in self.processes):
            self.ended = True
            self.broadcast(AllDone())

    # Exchanges and stopping:

    def on_exchange(self, process: ProcessState, message: Exchange, now: float) -> None:
        """Adds a process's value, and sends all values once they are complete. Ends the run where its name
        differs from the others'."""
        exchange = self.exchanges.setdefault(
            message.number, PendingExchange(message.name, process.rank, now, message.seconds)
        )
        if exchange.name != message.name:
            other = f"{self.processes[exchange.first].name} is at {exchange.name!r}"
            return self.end_naming(
                "apart", process, f"is at {message.name!r} while {other}: they run different programs"
            )
        exchange.values[process.rank] = message.value
        if len(exchange.values) == len(self.processes):
            del self.exchanges[message.number]
            self.broadcast(Exchanged(message.number, [exchange.values[p.rank] for p in self.processes]))

    def on_stop_requested(self, process: ProcessState, message: StopRequested) -> None:
        """Sends BlockBarrier to all processes on the first request to stop; later requests change nothing."""
        if self.stop is None:
            self.stop, self.stop_from = message, process
            self.unanswered = {p.rank for p in self.processes if p.running}
            self.outbox += [(rank, BlockBarrier()) for rank in sorted(self.unanswered)]

    def decide_stop(self) -> None:
        """Once all processes have answered: sends the poll at which they stop, or LeaveNow if none has work
        to save."""
        if self.stop is None or self.unanswered or not self.answers:
            return
        request = self.stop.signal, self.stop.reason, self.stop_from.rank, self.stop_from.host
        if any(answer.armed for answer in self.answers):
            self.broadcast(StopAt(1 + max(answer.ticks for answer in self.answers), *request))
        else:
            self.leaving = True
            self.broadcast(LeaveNow(*request))
        self.answers = []


def silence(seconds: float, config: ClusterConfig) -> str:
    """The message about a process that sends no beats."""
    return (
        f"was not heard of for {seconds:.0f} s (cluster.beat_seconds={config.beat_seconds:g}): its host "
        "is down or can't be reached, "
        "or the process is suspended or stuck in a library"
    )
