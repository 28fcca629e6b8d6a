"""SIGTERM and Ctrl-C: a run ends with all that it has done, and never in the middle of something."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """A signal asked the run to stop. Like KeyboardInterrupt it is no Exception, so nothing takes it for a failure."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopSignal:
    """Takes the signals from `with` on. A second one does what the process did before: as a rule it ends at once.

    Until `hold`, a signal raises Stopped wherever the run is: nothing has been done that could be lost. After it, a
    signal is only noted, and the run stops where it looks: between two steps, batches of an evaluation, or samples.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.held = False
        self.old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread take signals
            self.old = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self.old[number])
        if not self.held:
            raise Stopped(number)

    def hold(self) -> None:
        """From now on there is something to lose."""
        self.held = True

    def check(self) -> None:
        """Raises Stopped if a signal came."""
        if self.received is not None:
            raise Stopped(self.received)
