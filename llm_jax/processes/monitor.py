"""The monitor thread of a process, which works while the main thread trains, compiles or waits in a
collective; in rank 0 it runs the coordinator.

It notices signals, sends beats, and ends the process when the run has failed in another one.
docs/processes.md describes the protocol.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import math
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_jax.core.errors import EXIT_FAULT, EXIT_PEER, EXIT_USER_ERROR, Stopped
from llm_jax.processes import fault_log
from llm_jax.processes.address import end_of_job
from llm_jax.processes.config import ClusterConfig
from llm_jax.processes.connection import Connection
from llm_jax.processes.coordinator import KILLED, Coordinator, silence
from llm_jax.processes.fault_log import Record, end_process, write_stderr
from llm_jax.processes.launcher import LaunchedProcess, process_name
from llm_jax.processes.messages import (
    AllDone,
    BarrierBlocked,
    Beat,
    BlockBarrier,
    CoordinatorGivenUp,
    EndForFault,
    EndForUserError,
    Exchanged,
    Goodbye,
    LeaveNow,
    Message,
    StopAt,
    StopRequested,
)
from llm_jax.processes.signals import SignalHandlers, StopBarrier

BEAT_SECONDS = 1.0
"""Between beats, so that the coordinator knows where a process was when it dies."""
LEAVE_SECONDS = 5.0
"""The main thread has so long to notice that the run leaves; it may be deep in a library."""
UNWIND_SECONDS = 15.0
"""And so long to close what it has open; Slurm kills 30 s after its SIGTERM by default."""
LAST_SECONDS = 3.0
"""Rank 0 waits so long for the others to end: JAX's own service runs in it, whose end would abort them before
they could print why."""
STACKS_SECONDS = 3.0
"""A process whose threads can't run is missed by the others first, and prints its stacks and ends so much
later."""
LOCATION_SECONDS = 0.5
"""The beats of a process without progress for so long have the location of its main thread."""
LAST_PART = 1 / 4
"""At most this part of a job's time is kept for its stop, so that a job of two minutes makes progress too."""
WITNESSES = 4
"""So many of the first ranks record that rank 0 is lost: some may be lost with it."""
SUSPENDED_SECONDS = 5.0
"""A thread that was not run for so long was suspended, or its machine was."""


@dataclass
class Progress:
    """How far a process is. Only its main thread advances it."""

    phase: str = "start"
    step: int = 0
    batch: str | None = None
    batches: collections.deque[tuple[int, str | None]] = field(
        default_factory=lambda: collections.deque(maxlen=8)
    )
    """The last steps with their batches: other processes may not know theirs."""
    count: int = 0
    """How many marks, polls and exchanges it has passed."""
    at: float = 0.0
    """When it passed the last of them, in seconds of `time.monotonic`."""

    def advance(self) -> None:
        """Counts a mark, poll or exchange."""
        self.count += 1
        self.at = time.monotonic()

    def batch_of(self, step: int) -> str | None:
        """The batch of one of the last steps; None if it isn't known."""
        return next((batch for its, batch in list(self.batches) if its == step), None)


def main_thread_location() -> str:
    """File, line and function of the main thread's innermost frame in this package (outside of this folder),
    or of its innermost if none is."""
    frame = innermost = sys._current_frames().get(threading.main_thread().ident or 0)
    ours, own = str(Path(__file__).parents[1]), str(Path(__file__).parent)
    while frame and (
        not frame.f_code.co_filename.startswith(ours) or frame.f_code.co_filename.startswith(own)
    ):
        frame = frame.f_back
    frame = frame or innermost
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else ""


class Monitor:
    """The monitor thread of one process, and what it shares with the main thread."""

    def __init__(
        self,
        task: LaunchedProcess,
        config: ClusterConfig,
        barrier: StopBarrier,
        handlers: SignalHandlers,
        progress: Progress,
        wake: tuple[socket.socket, socket.socket],
    ):
        """wake: a socket that the thread reads, and its other end: a byte there wakes the thread; it is a
        signal's number, or 0."""
        self.task, self.config, self.barrier, self.handlers, self.progress = (
            task,
            config,
            barrier,
            handlers,
            progress,
        )
        self.wake_read, self.wake_write = wake
        self.run_dir: Path | None = None
        self.hosts: list[str] = []
        self.connections: dict[int, Connection] = {}
        """In rank 0 to each other rank, in the others to rank 0."""
        self.coordinator: Coordinator | None = None
        self.thread = threading.Thread(target=self.run, name="monitor", daemon=True)
        self.posted: collections.deque[Message] = collections.deque()
        self.changed = threading.Condition()
        self.results: dict[int, list[Any]] = {}
        """The values of complete exchanges, by number, until the main thread takes them."""
        self.done = False
        """Whether all processes have said goodbye."""
        self.ending = False
        self.error = ""
        """The traceback or error line of this process's own failure."""
        self.first_beat = Beat("start", 0, None, 0, 0.0)
        """The last beat of rank 0."""
        self.last_heard = time.monotonic()
        """When the last message of rank 0 came."""
        self.leave_at = math.inf
        self.limit = math.inf
        """When the run is to stop because its job's time ends, in seconds of `time.monotonic`."""
        self.margin = config.stop_before_end_seconds
        self.selector = selectors.DefaultSelector()

    @property
    def job_fields(self) -> Record:
        """The fields that all fault records of this start share: job and restart."""
        return {"job": self.task.job, "restart": self.task.restart}

    def start(self, hosts: list[str], connections: dict[int, Connection]) -> None:
        """Starts the thread, after the rendezvous."""
        self.hosts, self.connections = hosts, connections
        if self.task.rank == 0:
            now, batch_of = time.monotonic(), self.progress.batch_of
            self.coordinator = Coordinator(
                hosts,
                self.config,
                self.job_fields,
                lambda fault: fault_log.append(self.run_dir, fault),
                now,
                batch_of,
            )
            self.limit = self.stop_time()
        self.progress.at = self.last_heard = time.monotonic()
        self.thread.start()

    def post(self, message: Message) -> None:
        """Sends a message to the coordinator; may be called from any thread."""
        self.posted.append(message)
        self.wake()

    def wake(self) -> None:
        """Wakes the thread, so that it sends what was posted."""
        with contextlib.suppress(BlockingIOError):  # a full buffer wakes it anyway
            self.wake_write.send(b"\0")

    def stop_time(self) -> float:
        """When to stop because of the job's time limit, in seconds of `time.monotonic`."""
        end = end_of_job(self.task.job) if self.config.stop_before_end_seconds else None
        if end is None:
            return math.inf
        left = end - time.time()
        self.margin = min(self.margin, left * LAST_PART)
        return time.monotonic() + left - self.margin

    # The thread:

    def run(self) -> None:
        """Watches until all processes have said goodbye. An exception in this thread ends the process:
        nothing else would notice faults."""
        try:
            self.watch()
        except BaseException:
            write_stderr(traceback.format_exc())
            end_process(EXIT_FAULT)

    def watch(self) -> None:
        """Receives and sends messages until all processes have said goodbye."""
        interval = min(BEAT_SECONDS, self.config.beat_seconds / 4, self.config.hang_seconds / 4)
        self.selector.register(self.wake_read, selectors.EVENT_READ, None)
        for rank, connection in self.connections.items():
            self.selector.register(connection, selectors.EVENT_READ, rank)
            self.receive(rank, connection.unread)
            connection.unread = []
        last = beat = self.last_heard  # since `start`: a suspension may come first
        while not self.done:
            # After a suspension the first select has only timed out: messages that wait to be read come
            # before any judgement.
            ready = self.selector.select(max(0.0, beat - last)) or self.selector.select(0)
            now = time.monotonic()
            if now - last > interval + min(SUSPENDED_SECONDS, self.config.beat_seconds / 2):
                self.shift_clock(now - last)
            last = now
            for key, _ in ready:
                if key.data is not None:
                    self.receive(key.data, self.connections[key.data].receive())
            self.drop_closed()
            self.read_signals()
            while self.posted:
                self.send(self.posted.popleft())
            if now >= beat:
                beat = now + interval
                self.send_beat(now)
            if self.coordinator:
                self.coordinator.check_clock(now)
            self.deliver()
            if now - self.last_heard > self.config.beat_seconds and not self.coordinator:
                self.end_without_coordinator("silent", silence(now - self.last_heard, self.config))
            if now > self.leave_at:
                self.force_leave()
        faulthandler.cancel_dump_traceback_later()
        self.selector.close()

    def shift_clock(self, seconds: float) -> None:
        """This process was suspended for so long: the time doesn't count."""
        self.progress.at += seconds
        self.last_heard += seconds
        if self.coordinator:
            self.coordinator.shift_clock(seconds)

    def receive(self, rank: int, messages: list[Message]) -> None:
        """Handles messages of another process: of any in rank 0, of rank 0 in all others."""
        for message in messages:
            if self.coordinator:
                if isinstance(message, CoordinatorGivenUp):
                    self.end_after_suspension()
                self.coordinator.receive(rank, message, time.monotonic())
                self.deliver()
            else:
                self.last_heard = time.monotonic()
                self.handle(message)

    def drop_closed(self) -> None:
        """Removes connections that were closed, after the messages that had arrived on them were handled."""
        for rank in [rank for rank, connection in self.connections.items() if connection.closed]:
            connection = self.connections.pop(rank)
            self.receive(rank, connection.drain())
            self.selector.unregister(connection)
            connection.close()
            if self.coordinator:
                self.coordinator.connection_lost(rank)
            elif not self.done:
                self.end_without_coordinator("killed", KILLED)

    def send(self, message: Message) -> None:
        """Sends a message to the coordinator, from this thread."""
        if self.coordinator:
            self.coordinator.receive(0, message, time.monotonic())
        elif 0 in self.connections:
            self.connections[0].send(message)

    def deliver(self) -> None:
        """Sends the messages in the coordinator's outbox."""
        while self.coordinator and self.coordinator.outbox:
            messages, self.coordinator.outbox = self.coordinator.outbox, []
            for rank, message in sorted(messages, key=lambda item: item[0] == 0):  # itself last: it may end
                if rank in self.connections:
                    self.connections[rank].send(message)
                elif rank == 0:
                    self.handle(message)

    def send_beat(self, now: float) -> None:
        """Sends a beat, and checks the job's time limit."""
        progress = self.progress
        idle = now - progress.at
        location = main_thread_location() if idle > LOCATION_SECONDS else ""
        beat = Beat(progress.phase, progress.step, progress.batch, progress.count, idle, location)
        self.send(beat)
        if self.coordinator:
            for connection in self.connections.values():
                connection.send(beat)
        # Prints the stacks (of several processes: and ends this one) where a library holds Python's lock and
        # this thread can't run any more.
        if self.task.size > 1:
            faulthandler.dump_traceback_later(self.config.beat_seconds + STACKS_SECONDS, exit=True, file=2)
        elif self.config.hang_seconds < threading.TIMEOUT_MAX:
            faulthandler.dump_traceback_later(self.config.hang_seconds + STACKS_SECONDS, file=2)
        if now > self.limit:  # unless it was extended
            self.limit = (
                time.monotonic() + (end_of_job(self.task.job) or math.inf) - time.time() - self.margin
            )
            if now > self.limit:
                self.limit = math.inf
                self.send(StopRequested(int(signal.SIGUSR1), "the end of the job's time limit"))

    def read_signals(self) -> None:
        """Reads the numbers of signals that came to the process. (Python may call their handlers in the main
        thread much later.)"""
        try:
            numbers = self.wake_read.recv(4096)
        except BlockingIOError:
            return
        for number in numbers:
            if number and not self.barrier.decided:
                self.handlers.received.add(number)
                self.send(StopRequested(number, signal.Signals(number).name))

    # Messages of the coordinator:

    def handle(self, message: Message) -> None:
        """Does what a message of the coordinator asks for."""
        match message:
            case Beat():
                self.first_beat = message
            case Exchanged():
                with self.changed:
                    self.results[message.number] = message.values
                    self.changed.notify_all()
            case BlockBarrier():
                self.send(BarrierBlocked(*self.barrier.block()))
            case StopAt():
                self.barrier.stop_at(message.tick, message.signal, self.stop_reason(message))
            case LeaveNow():
                self.barrier.leave_now(message.signal, self.stop_reason(message))
                self.handlers.interrupt()
                self.leave_at = time.monotonic() + LEAVE_SECONDS
            case EndForFault():
                self.end_for_fault(message.fault)
            case EndForUserError():
                if self.task.rank == 0:
                    who = f"{process_name(message.rank, message.host)}: " if message.rank else ""
                    write_stderr(f"error: {who}{message.text}")
                self.end_with(EXIT_USER_ERROR)
            case AllDone():
                with self.changed:
                    self.done = True
                    self.changed.notify_all()
            case _:
                raise TypeError(f"the coordinator sent {message}, which no process receives")

    def stop_reason(self, message: StopAt | LeaveNow) -> str:
        """Why the run stops: a signal's name, with the process that received it where this one didn't; or the
        time limit."""
        own = (
            message.signal in self.handlers.received
            or not message.reason.startswith("SIG")
            or self.task.size == 1
        )
        return message.reason + ("" if own else f" at {process_name(message.rank, message.host)}")

    # The end:

    def end_without_coordinator(self, kind: str, message: str) -> None:
        """Records that rank 0, and the coordinator with it, is lost, and ends this process."""
        fault = {"time": time.time(), "kind": kind, "rank": 0, "host": self.hosts[0], **self.job_fields}
        beat = self.first_beat
        fault |= {"phase": beat.phase, "step": beat.step, "batch": beat.batch, "message": message}
        if 0 in self.connections:
            self.connections[0].send(CoordinatorGivenUp())
        if self.task.rank < WITNESSES:  # at once: JAX aborts a process whose rank 0 is lost
            fault_log.append(self.run_dir, fault, once=True)
        self.end_for_fault(fault)

    def end_after_suspension(self) -> None:
        """Ends rank 0, because another process has not heard of it and has ended the run: it was
        suspended."""
        write_stderr(
            f"error: this process ({self.task.name}) was suspended, and the run has ended without it"
        )
        end_process(EXIT_FAULT)

    def end_for_fault(self, fault: Record) -> None:
        """Ends this process because of a fault, its own or another's."""
        self.ending = True
        if fault["kind"] == "hang":
            fault_log.dump_stacks(self.run_dir, self.task.rank)
        mine = fault["rank"] == self.task.rank
        write_stderr(
            self.error if mine and self.error else f"error: the run stops: {fault_log.describe(fault)}"
        )
        self.end_with(EXIT_FAULT if mine else EXIT_PEER)

    def force_leave(self) -> None:
        """Ends this process where its main thread doesn't: it is in a library, or closes something that
        doesn't close."""
        if self.handlers.raised and self.leave_at < math.inf and not self.ending:
            self.ending, self.leave_at = True, time.monotonic() + UNWIND_SECONDS
            return
        stopped = Stopped(self.barrier.signal, self.barrier.reason)
        self.send(Goodbye())
        self.deliver()
        if self.task.rank == 0:
            write_stderr(stopped.early)
        self.end_with(stopped.code)

    def end_with(self, code: int) -> None:
        """Ends this process; rank 0 after all others, or after LAST_SECONDS."""
        faulthandler.cancel_dump_traceback_later()
        deadline = time.monotonic() + LAST_SECONDS
        for connection in self.connections.values() if self.coordinator else ():
            connection.socket.settimeout(max(0.01, deadline - time.monotonic()))
            while not connection.closed and time.monotonic() < deadline:
                connection.receive()
        end_process(code)
