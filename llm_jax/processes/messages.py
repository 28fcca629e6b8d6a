"""The messages between the processes of a run: one frozen dataclass per kind, sent as a line of JSON {"kind":
class name, field: value, ...}.

Every process sends to the coordinator, which runs in the monitor thread of rank 0, and receives from it.
docs/processes.md has them as a table.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

from llm_jax.processes.fault_log import Record


@dataclass(frozen=True)
class Message:
    """The base class of all messages. Its subclasses' field values can be written as JSON."""

    kinds: ClassVar[dict[str, type[Message]]] = {}

    def __init_subclass__(cls) -> None:
        Message.kinds[cls.__name__] = cls

    def encode(self) -> bytes:
        """The message as a line of JSON, with its newline."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.dumps({"kind": type(self).__name__, **fields}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message in a line of JSON. Raises ValueError for anything else, as another program at this port may
    send it."""
    try:
        fields: dict[str, Any] = dict(json.loads(line))
        return Message.kinds[fields.pop("kind")](**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"not a message: {line[:100]!r}") from error


# Rendezvous, process to rank 0:


@dataclass(frozen=True)
class Hello(Message):
    """A process connects to rank 0."""

    token: str
    """`LaunchedProcess.token`, equal in all processes of a run."""
    rank: int
    host: str


# Rendezvous, rank 0 to a process:


@dataclass(frozen=True)
class Refused(Message):
    """Rank 0 doesn't accept the connection."""

    reason: str
    """Empty where the process belongs to another run, and tries the next port."""


@dataclass(frozen=True)
class Accepted(Message):
    """Rank 0 has accepted the connection and waits for the other processes."""


@dataclass(frozen=True)
class AllConnected(Message):
    """All processes have connected: the run begins."""

    hosts: list[str]
    """The host of each process, by rank."""


@dataclass(frozen=True)
class RendezvousFailed(Message):
    """A process did not connect in time, or ended before all had connected."""

    text: str


# While the run lasts, process to coordinator:


@dataclass(frozen=True)
class Beat(Message):
    """Sent about once a second: the process is alive, and this is its progress. Rank 0 also sends its own to
    all others."""

    phase: str
    step: int
    """The step under way, counted from 1; 0 before the first."""
    batch: str | None
    """The fingerprint of that step's batch, where it is known."""
    progress: int
    """How many marks, polls and exchanges the process has passed since its start."""
    idle_seconds: float
    """Seconds since the last of them."""
    location: str = ""
    """File, line and function in which the main thread is, if it has been idle for a while."""


@dataclass(frozen=True)
class Exchange(Message):
    """The process has reached an exchange, and waits for everyone's values."""

    number: int
    """1, 2, ... in the order of the program, which is equal in all processes."""
    name: str
    value: Any
    seconds: float | None
    """The run ends if not all processes have reached it after so long; None: without limit."""


@dataclass(frozen=True)
class StopRequested(Message):
    """The process received a signal, or the job's time limit is near."""

    signal: int
    reason: str
    """The signal's name, or a sentence about the time limit."""


@dataclass(frozen=True)
class BarrierBlocked(Message):
    """The answer to BlockBarrier: the process passes no further poll until StopAt or LeaveNow."""

    ticks: int
    """Polls that it has passed."""
    armed: bool
    """Whether there is work to save."""


@dataclass(frozen=True)
class ReportFault(Message):
    """An exception was raised in the process."""

    fault: Record


@dataclass(frozen=True)
class ReportUserError(Message):
    """A UserError was raised in the process."""

    text: str


@dataclass(frozen=True)
class Goodbye(Message):
    """The process has reached the end of its program."""


@dataclass(frozen=True)
class CoordinatorGivenUp(Message):
    """The process has not heard of rank 0 for too long, and ends."""


# While the run lasts, coordinator to process:


@dataclass(frozen=True)
class Exchanged(Message):
    """All processes have reached this exchange."""

    number: int
    values: list[Any]
    """By rank."""


@dataclass(frozen=True)
class BlockBarrier(Message):
    """A stop was requested: pass no further poll, and answer with BarrierBlocked."""


@dataclass(frozen=True)
class StopAt(Message):
    """Go on to this poll, and stop there."""

    tick: int
    signal: int
    reason: str
    rank: int
    """The process that requested the stop, and its host."""
    host: str


@dataclass(frozen=True)
class LeaveNow(Message):
    """Stop at once: no process has work to save."""

    signal: int
    reason: str
    rank: int
    """The process that requested the stop, and its host."""
    host: str


@dataclass(frozen=True)
class EndForFault(Message):
    """The run has failed: print the line that names the culprit, and end."""

    fault: Record


@dataclass(frozen=True)
class EndForUserError(Message):
    """End with the exit code of a user error; rank 0 prints the text."""

    rank: int
    host: str
    text: str


@dataclass(frozen=True)
class AllDone(Message):
    """All processes have said goodbye: the monitor threads end."""
