"""The thread that speaks for a process while its main thread trains, compiles or waits in a collective; in rank 0 it is also the hub.

It takes signals, sends word where the process is, and ends the process when the run has failed elsewhere.
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
from llm_jax.processes.connection import Link, Message
from llm_jax.processes.coordinator import KILLED, Hub, silent
from llm_jax.processes.fault_log import Record, end_process, last_words
from llm_jax.processes.launcher import Task, process_name
from llm_jax.processes.signals import Gate, Signals

BEAT_SECONDS = 1.0
"""Between words to the hub, so that it knows where a process was when that dies."""
LEAVE_SECONDS = 5.0
"""The main thread has so long to notice that the run leaves; it may be deep in a library."""
UNWIND_SECONDS = 15.0
"""And so long to close what it has open; Slurm kills 30 s after its SIGTERM by default."""
LAST_SECONDS = 3.0
"""Rank 0 waits so long for the others to be gone: JAX's own service is in it, whose end would abort them before they could say why."""
STACKS_SECONDS = 3.0
"""A process whose threads can't run is missed by the others first, and shows its stacks and ends so much later."""
PLACE_SECONDS = 0.5
"""Of a process that gets no further for so long it is told where in the code it is."""
LAST_PART = 1 / 4
"""At most this part of a job's time is kept for its stop: one of two minutes is to get somewhere too."""
WITNESSES = 4
"""So many of the first processes write down that rank 0 is gone: some may be gone with it."""
SUSPENDED_SECONDS = 5.0
"""A thread that was not run for so long was suspended, or its machine was."""


@dataclass
class Mark:
    """Where a process is. Only its main thread moves it."""

    phase: str = "start"
    step: int = 0
    batch: str | None = None
    batches: collections.deque[tuple[int, str | None]] = field(default_factory=lambda: collections.deque(maxlen=8))
    """The last steps with their batches: other processes may not know theirs."""
    moves: int = 0
    """How often it got further."""
    moved: float = 0.0
    """When it last got any further, in seconds of `time.monotonic`."""

    def move(self) -> None:
        """It got further."""
        self.moves += 1
        self.moved = time.monotonic()

    def batch_of(self, step: int) -> str | None:
        """The batch of one of the last steps; None if it isn't known."""
        return next((batch for its, batch in list(self.batches) if its == step), None)


def main_place() -> str:
    """Where the main thread is: the innermost line of ours, or of all if none is."""
    frame = innermost = sys._current_frames().get(threading.main_thread().ident or 0)
    ours, own = str(Path(__file__).parents[1]), str(Path(__file__).parent)
    while frame and (not frame.f_code.co_filename.startswith(ours) or frame.f_code.co_filename.startswith(own)):
        frame = frame.f_back
    frame = frame or innermost
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else ""


class Monitor:
    """The thread of one process."""

    def __init__(self, task: Task, config: ClusterConfig, gate: Gate, signals: Signals, mark: Mark, wake: tuple[socket.socket, socket.socket]):
        self.task, self.config, self.gate, self.signals, self.mark = task, config, gate, signals, mark
        self.wake_read, self.wake_write = wake
        self.run_dir: Path | None = None
        self.hosts: list[str] = []
        self.links: dict[int, Link] = {}
        self.hub: Hub | None = None
        self.thread = threading.Thread(target=self.run, name="monitor", daemon=True)
        self.posted: collections.deque[Message] = collections.deque()
        self.changed = threading.Condition()
        self.results: dict[int, list[Any]] = {}
        """Exchanges that are complete, by number."""
        self.done = False
        """Whether all have said goodbye."""
        self.ending = False
        self.error = ""
        """The traceback of this process's own failure."""
        self.first = Mark()
        """Where rank 0 is."""
        self.heard = time.monotonic()
        self.leave_at = math.inf
        self.limit = math.inf
        """When the run is to stop because its job's time ends."""
        self.margin = config.stop_before_end_seconds
        self.selector = selectors.DefaultSelector()

    @property
    def about(self) -> Record:
        """What all faults of this start have in common."""
        return {"job": self.task.job, "restart": self.task.restart}

    def start(self, hosts: list[str], links: dict[int, Link]) -> None:
        """Begins to watch, once all processes have met."""
        self.hosts, self.links = hosts, links
        if self.task.rank == 0:
            self.hub = Hub(hosts, self.config, self.about, lambda fault: fault_log.append(self.run_dir, fault), time.monotonic(), self.mark.batch_of)
            self.limit = self.time_limit()
        self.mark.moved = self.heard = time.monotonic()
        self.thread.start()

    def post(self, message: Message) -> None:
        """Sends a message to the hub; from any thread."""
        self.posted.append(message)
        self.wake()

    def wake(self) -> None:
        """Has the thread look at what was posted."""
        with contextlib.suppress(BlockingIOError):  # so much is waiting there that it will look anyway
            self.wake_write.send(b"\0")

    def time_limit(self) -> float:
        """When to stop because of the job's time limit, in seconds of `time.monotonic`."""
        end = end_of_job(self.task.job) if self.config.stop_before_end_seconds else None
        if end is None:
            return math.inf
        left = end - time.time()
        self.margin = min(self.margin, left * LAST_PART)
        return time.monotonic() + left - self.margin

    # The thread:

    def run(self) -> None:
        """Watches until all have said goodbye."""
        try:
            self.watch()
        except BaseException:  # without this thread nobody would notice anything any more
            last_words(traceback.format_exc())
            end_process(EXIT_FAULT)

    def watch(self) -> None:
        interval = min(BEAT_SECONDS, self.config.beat_seconds / 4, self.config.hang_seconds / 4)
        self.selector.register(self.wake_read, selectors.EVENT_READ, None)
        for rank, link in self.links.items():
            self.selector.register(link, selectors.EVENT_READ, rank)
            self.take(rank, link.waiting)
            link.waiting = []
        last = beat = self.heard  # since `start`: a suspension may come first
        while not self.done:
            # After a suspension the first look has only timed out: nobody is judged by words that wait to be read.
            ready = self.selector.select(max(0.0, beat - last)) or self.selector.select(0)
            now = time.monotonic()
            if now - last > interval + min(SUSPENDED_SECONDS, self.config.beat_seconds / 2):
                self.forgive(now - last)
            last = now
            for key, _ in ready:
                if key.data is not None:
                    self.take(key.data, self.links[key.data].receive())
            self.look_for_closed()
            self.take_signals()
            while self.posted:
                self.to_hub(self.posted.popleft())
            if now >= beat:
                beat = now + interval
                self.beat(now)
            if self.hub:
                self.hub.tick(now)
            self.deliver()
            if now - self.heard > self.config.beat_seconds and not self.hub:
                self.lost_first("silent", silent(now - self.heard, self.config))
            if now > self.leave_at:
                self.leave_hard()
        self.end()

    def forgive(self, seconds: float) -> None:
        """This process was suspended: its clocks stood still."""
        self.mark.moved += seconds
        self.heard += seconds
        if self.hub:
            self.hub.forgive(seconds)

    def take(self, rank: int, messages: list[Message]) -> None:
        """Messages of another process: of any in rank 0, of rank 0 in all others."""
        for message in messages:
            if self.hub:
                if message["kind"] == "given_up":
                    self.given_up(rank)
                self.hub.receive(rank, message, time.monotonic())
                self.deliver()
            else:
                self.heard = time.monotonic()
                self.handle(message)

    def look_for_closed(self) -> None:
        """Connections that ended."""
        for rank in [rank for rank, link in self.links.items() if link.closed]:
            link = self.links.pop(rank)
            self.take(rank, link.rest())
            self.selector.unregister(link)
            link.close()
            if self.hub:
                self.hub.lost(rank, time.monotonic())
            elif not self.done:
                self.lost_first("killed", KILLED)

    def to_hub(self, message: Message) -> None:
        """A message of this process."""
        if self.hub:
            self.hub.receive(0, message, time.monotonic())
        elif 0 in self.links:
            self.links[0].send(message)

    def deliver(self) -> None:
        """Sends what the hub has to say."""
        while self.hub and self.hub.out:
            out, self.hub.out = self.hub.out, []
            for rank, message in sorted(out, key=lambda item: item[0] == 0):  # itself last, since it may end by it
                if rank in self.links:
                    self.links[rank].send(message)
                elif rank == 0:
                    self.handle(message)

    def beat(self, now: float) -> None:
        """Says that this process lives, and where it is; and looks at the job's time."""
        mark = self.mark
        where = {"phase": mark.phase, "step": mark.step, "batch": mark.batch, "moves": mark.moves, "age": now - mark.moved}
        self.to_hub({"kind": "beat", **where, "place": main_place() if now - mark.moved > PLACE_SECONDS else ""})
        if self.hub:
            for link in self.links.values():
                link.send({"kind": "beat", **where})
        if self.task.size > 1:  # where this thread can't run any more, since a library has Python's lock: the stacks, and the end
            faulthandler.dump_traceback_later(self.config.beat_seconds + STACKS_SECONDS, exit=True, file=2)
        elif self.config.hang_seconds < threading.TIMEOUT_MAX:
            faulthandler.dump_traceback_later(self.config.hang_seconds + STACKS_SECONDS, file=2)
        if now > self.limit:
            self.limit = time.monotonic() + (end_of_job(self.task.job) or math.inf) - time.time() - self.margin  # it may have been extended
            if now > self.limit:
                self.limit = math.inf
                self.to_hub({"kind": "signal", "number": int(signal.SIGUSR1), "reason": "the end of the job's time limit"})

    def take_signals(self) -> None:
        """Signals as they came to the process. The handler in the main thread may be a long time coming."""
        try:
            numbers = self.wake_read.recv(4096)
        except BlockingIOError:
            return
        for number in numbers:
            if number and not self.gate.decided:
                self.signals.received.add(number)
                self.to_hub({"kind": "signal", "number": number, "reason": signal.Signals(number).name})

    # What the hub says:

    def handle(self, message: Message) -> None:
        """A message of the hub."""
        getattr(self, f"on_{message['kind']}")(message)

    def on_beat(self, message: Message) -> None:
        self.first = Mark(message["phase"], message["step"], message["batch"])

    def on_exchanged(self, message: Message) -> None:
        with self.changed:
            self.results[message["count"]] = message["values"]
            self.changed.notify_all()

    def on_ask(self, message: Message) -> None:
        ticks, held = self.gate.close()
        self.to_hub({"kind": "answer", "ticks": ticks, "held": held})

    def on_go(self, message: Message) -> None:
        self.gate.go(message["tick"], message["number"], self.reason(message))

    def on_leave(self, message: Message) -> None:
        self.gate.leave(message["number"], self.reason(message))
        self.signals.interrupt()
        self.leave_at = time.monotonic() + LEAVE_SECONDS

    def reason(self, message: Message) -> str:
        """Why the run stops, and where that came from, if not to all."""
        own = message["number"] in self.signals.received or not message["reason"].startswith("SIG") or self.task.size == 1
        return message["reason"] + ("" if own else f" at {process_name(message['rank'], message['host'])}")

    def on_fault(self, message: Message) -> None:
        self.stop_for(message["fault"])

    def on_mistake(self, message: Message) -> None:
        if self.task.rank == 0:
            who = f"{process_name(message['rank'], message['host'])}: " if message["rank"] else ""
            last_words(f"error: {who}{message['text']}")
        self.end_with(EXIT_USER_ERROR)

    def on_bye(self, message: Message) -> None:
        with self.changed:
            self.done = True
            self.changed.notify_all()

    # The end:

    def end(self) -> None:
        """All have said goodbye."""
        faulthandler.cancel_dump_traceback_later()
        self.selector.close()

    def lost_first(self, kind: str, message: str) -> None:
        """Rank 0 is gone, and the hub with it."""
        fault = {"time": time.time(), "kind": kind, "rank": 0, "host": self.hosts[0], **self.about}
        fault |= {"phase": self.first.phase, "step": self.first.step, "batch": self.first.batch, "message": message}
        if 0 in self.links:
            self.links[0].send({"kind": "given_up"})
        if self.task.rank < WITNESSES:  # at once: JAX aborts a process whose rank 0 is gone
            fault_log.append(self.run_dir, fault, once=True)
        self.stop_for(fault)

    def given_up(self, rank: int) -> None:
        """Another process has ended the run because it did not hear of this one: it was suspended, and is too late."""
        last_words(f"error: this process ({self.task.name}) was suspended, and the run has ended without it")
        end_process(EXIT_FAULT)

    def stop_for(self, fault: Record) -> None:
        """Ends this process because of a fault, of itself or of another."""
        self.ending = True
        if fault["kind"] == "hang":
            fault_log.dump_stacks(self.run_dir, self.task.rank)
        mine = fault["rank"] == self.task.rank
        last_words(self.error if mine and self.error else f"error: the run stops: {fault_log.describe(fault)}")
        self.end_with(EXIT_FAULT if mine else EXIT_PEER)

    def leave_hard(self) -> None:
        """The main thread hasn't left: it is somewhere in a library, or closes something that doesn't close."""
        if self.signals.raised and self.leave_at < math.inf and not self.ending:
            self.ending, self.leave_at = True, time.monotonic() + UNWIND_SECONDS
            return
        stopped = Stopped(self.gate.number, self.gate.reason)
        self.to_hub({"kind": "bye"})
        self.deliver()
        if self.task.rank == 0:
            last_words(stopped.early)
        self.end_with(stopped.code)

    def end_with(self, code: int) -> None:
        """Ends this process; rank 0 after all others."""
        faulthandler.cancel_dump_traceback_later()
        deadline = time.monotonic() + LAST_SECONDS
        for link in self.links.values() if self.hub else ():
            link.connection.settimeout(max(0.01, deadline - time.monotonic()))
            while not link.closed and time.monotonic() < deadline:
                link.receive()
        end_process(code)
