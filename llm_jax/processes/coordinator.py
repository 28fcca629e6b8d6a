"""What the first process knows of all, and what follows from it: messages in, messages out, no sockets and no threads.

from a process                                     to processes
beat      phase, step, batch, age                  beat       phase, step of rank 0
exchange  count, name, value, seconds              exchanged  count, values by rank
signal    number                                   ask        how many ticks, and whether something is held
answer    ticks, held                              go         tick, number, reason
fault     a fault's record                         leave      number, reason
mistake   text                                     fault      a fault's record: the run ends
bye                                                mistake    rank, text: the run ends
                                                   bye        all have said it
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llm_jax.processes.config import ClusterConfig
from llm_jax.processes.connection import Message
from llm_jax.processes.fault_log import Record
from llm_jax.processes.launcher import process_name

GRACE_SECONDS = 1.0
"""How long an exception waits for what may have caused it: another process's death shows in collectives too, sometimes sooner."""
KILLED = "ended without a word: it was killed, ran out of memory or crashed (its own output, and Slurm's, may say more)"
MISTAKE_SECONDS = 0.5
"""How long a mistake waits for the first process, which as a rule makes it too."""


@dataclass
class Member:
    """A process, as it was last heard of."""

    rank: int
    host: str
    heard: float
    """Seconds of `time.monotonic`, as all times here."""
    phase: str = "start"
    step: int = 0
    batch: str | None = None
    moves: int = 0
    """How often it got further since the start: every mark, poll and exchange. All processes make the same ones."""
    age: float = 0.0
    """Seconds since its mark had moved, when it was heard."""
    place: str = ""
    """Where in the code its main thread is, if it gets no further."""
    here: bool = True
    """Until it says goodbye."""

    @property
    def name(self) -> str:
        return process_name(self.rank, self.host)


@dataclass
class Call:
    """An exchange under way."""

    name: str
    first: int
    """The rank that came first."""
    begun: float
    seconds: float | None
    values: dict[int, Any] = field(default_factory=dict)


class Hub:
    """The state of a run's processes. Everything takes the time, so that tests can say what it is."""

    def __init__(
        self,
        hosts: list[str],
        config: ClusterConfig,
        about: Record,
        record: Callable[[Record], None],
        now: float,
        batch_of: Callable[[int], str | None] = lambda step: None,
    ):
        """hosts: by rank. about: what all records of this start have. record: keeps a fault. batch_of: a step's batch, if rank 0 knows it."""
        self.members = [Member(rank, host, now) for rank, host in enumerate(hosts)]
        self.config, self.about, self.record, self.batch_of = config, about, record, batch_of
        self.out: list[tuple[int, Message]] = []
        """What is to be sent: to which rank, what."""
        self.calls: dict[int, Call] = {}
        self.suspect: tuple[float, Record] | None = None
        """An exception, and when it was told."""
        self.mistakes: dict[int, str] = {}
        self.mistaken = 0.0
        self.asked: set[int] = set()
        """Those whose answer is waited for."""
        self.answers: list[tuple[int, bool]] = []
        self.signal: Message | None = None
        self.left = False
        """Whether all were told to leave, wherever they are."""
        self.ended = False
        """Whether the end was told to all: a fault, a mistake or goodbye."""

    def send(self, message: Message) -> None:
        """To all."""
        self.out += [(member.rank, message) for member in self.members]

    def receive(self, rank: int, message: Message, now: float) -> None:
        """A message of a process."""
        member = self.members[rank]
        member.heard = now
        if not self.ended:
            getattr(self, f"on_{message['kind']}")(member, message, now)

    def lost(self, rank: int, now: float) -> None:
        """A process's connection is closed."""
        member = self.members[rank]
        if not self.ended and member.here:
            if self.left:
                return self.on_bye(member, {}, now)
            self.fault("killed", member, KILLED)

    def tick(self, now: float) -> None:
        """Looks at the clock. Called often, when nothing more is waiting to be received."""
        if self.ended:
            return
        if self.suspect and now - self.suspect[0] >= GRACE_SECONDS:
            return self.end(self.suspect[1])
        if self.mistakes and (now - self.mistaken >= MISTAKE_SECONDS or 0 in self.mistakes):
            return self.tell_mistake()
        for member in self.members[1:]:
            if member.here and now - member.heard > self.config.beat_seconds:
                return self.fault("silent", member, silent(now - member.heard, self.config))
        for call in self.calls.values():
            if call.seconds is not None and now - call.begun > call.seconds:
                return self.late(call, now)
            gone = next((m for m in self.members if not m.here and m.rank not in call.values), None)
            if gone and not self.left:
                return self.fault("apart", gone, f"has come to its end, while {self.members[call.first].name} waits for it at {call.name!r}")
        self.look_for_hang(now)

    def forgive(self, seconds: float) -> None:
        """This process was suspended for so long: nobody is to blame for the silence."""
        for member in self.members:
            member.heard += seconds
        for call in self.calls.values():
            call.begun += seconds

    def look_for_hang(self, now: float) -> None:
        """Ends a run in which no process gets any further. Who is behind all others is to blame."""
        here = [member for member in self.members if member.here]
        ages = {member.rank: member.age + now - member.heard for member in here}
        if here and all(ages[member.rank] > self.config.limit(member.phase) for member in here):
            places = collections.Counter(member.place for member in here)  # those that wait for it wait in one place
            behind = min(here, key=lambda member: (member.moves, places[member.place], -ages[member.rank]))
            others = ", while the others wait for it" if len(here) > 1 else ""
            key = "compile_seconds" if behind.phase == "compile" else "hang_seconds"
            limit = f"cluster.{key}={self.config.limit(behind.phase):g}"
            where = f"; it is at {behind.place}" if behind.place else ""
            message = f"got no further for {ages[behind.rank]:.0f} s ({limit}){others}{where}; all stacks are in the run folder's faults/"
            self.fault("hang", behind, message)

    def fault(self, kind: str, member: Member, message: str) -> None:
        """A fault that this hub found."""
        where = {"phase": member.phase, "step": member.step, "batch": member.batch or self.batch_of(member.step)}
        self.end({"kind": kind, "rank": member.rank, "host": member.host, **self.about, **where, "message": message})

    def end(self, fault: Record) -> None:
        """The first fault is kept, told to all, and ends the run."""
        self.ended = True
        fault = {"time": time.time(), **fault}
        self.record(fault)
        self.send({"kind": "fault", "fault": fault})

    # Messages of a process:

    def on_beat(self, member: Member, message: Message, now: float) -> None:
        member.phase, member.step, member.batch = message["phase"], message["step"], message["batch"]
        member.moves, member.age, member.place = message["moves"], message["age"], message["place"]

    def on_fault(self, member: Member, message: Message, now: float) -> None:
        if not self.suspect:
            fault = message["fault"]
            self.suspect = now, {**fault, **self.about, "batch": fault["batch"] or self.batch_of(fault["step"])}

    def on_mistake(self, member: Member, message: Message, now: float) -> None:
        self.mistaken = self.mistaken if self.mistakes else now
        self.mistakes[member.rank] = message["text"]

    def tell_mistake(self) -> None:
        rank = min(self.mistakes)
        self.ended = True
        self.send({"kind": "mistake", "rank": rank, "host": self.members[rank].host, "text": self.mistakes[rank]})

    def on_bye(self, member: Member, message: Message, now: float) -> None:
        member.here = False
        self.asked.discard(member.rank)
        self.decide()
        if not any(m.here for m in self.members):
            self.ended = True
            self.send({"kind": "bye"})

    def on_exchange(self, member: Member, message: Message, now: float) -> None:
        count, name = message["count"], message["name"]
        call = self.calls.setdefault(count, Call(name, member.rank, now, message["seconds"]))
        if call.name != name:
            other = self.members[call.first]
            return self.fault("apart", member, f"is at {name!r} while {other.name} is at {call.name!r}: they don't run the same program")
        call.values[member.rank] = message["value"]
        if len(call.values) == len(self.members):
            del self.calls[count]
            self.send({"kind": "exchanged", "count": count, "values": [call.values[m.rank] for m in self.members]})

    def late(self, call: Call, now: float) -> None:
        """An exchange took too long."""
        missing = [member for member in self.members if member.rank not in call.values]
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        self.fault("late", missing[0], f"did not come to {call.name!r} within {now - call.begun:.0f} s{more}; the others wait there")

    def on_signal(self, member: Member, message: Message, now: float) -> None:
        if self.signal is None:
            self.signal = {"number": message["number"], "reason": message["reason"], "rank": member.rank, "host": member.host}
            self.asked = {m.rank for m in self.members if m.here}
            self.out += [(rank, {"kind": "ask"}) for rank in sorted(self.asked)]

    def on_answer(self, member: Member, message: Message, now: float) -> None:
        self.answers.append((message["ticks"], message["held"]))
        self.asked.discard(member.rank)
        self.decide()

    def decide(self) -> None:
        """Where all stop, once all have answered."""
        if self.signal is None or self.asked or not self.answers:
            return
        if any(held for _, held in self.answers):
            self.send({"kind": "go", "tick": 1 + max(ticks for ticks, _ in self.answers), **self.signal})
        else:
            self.left = True
            self.send({"kind": "leave", **self.signal})
        self.answers = []


def silent(seconds: float, config: ClusterConfig) -> str:
    """The message about a process that sends no beats."""
    return (
        f"was not heard of for {seconds:.0f} s (cluster.beat_seconds={config.beat_seconds:g}): its host is down or can't be reached, "
        "or the process is suspended or stuck in a library"
    )
