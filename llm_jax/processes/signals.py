"""SIGTERM, SIGUSR1 and Ctrl-C: a run ends with all that it has done, never in the middle of something, and on all processes at the same place."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from llm_jax.core.errors import Stopped

TAKEN = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Gate:
    """Where the main thread looks whether it should stop (`poll`), and where it waits while the processes agree on where.

    Each `poll` is a tick; all processes poll in the same places, so their ticks mean the same. On a signal every process closes its gate
    and tells how many ticks it has passed; they stop at the first tick that none has passed. A process that waits for others in a collective
    doesn't hold that up, since another thread answers; those behind go on to that tick, so nobody is waited for in vain.
    Before `hold` there is nothing to lose, and the processes leave wherever they are.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.ticks = 0
        self.held = False
        self.received: int | None = None
        """The signal, from the tick on at which all stop."""
        self.closed = False
        self.stop_at: int | None = None
        self.leaving = False
        self.number, self.reason = 0, ""

    @property
    def decided(self) -> bool:
        return self.leaving or self.stop_at is not None

    def poll(self) -> int | None:
        """One tick: the signal that stops the run here, or None. Raises Stopped where nothing was held yet."""
        with self.changed:
            self.wait()
            self.ticks += 1
            if self.stop_at is not None and self.ticks >= self.stop_at:
                self.received = self.number
            return self.received

    def check(self) -> None:
        """One tick: raises Stopped if the run stops here, and without a tick if it was to stop before."""
        if self.received is not None or self.poll() is not None:
            raise Stopped(self.number, self.reason)

    def hold(self) -> None:
        """From now on there is something to lose."""
        if self.held:
            return
        with self.changed:
            self.wait()
            self.held = True

    def release(self) -> None:
        """There is nothing to lose again: what was held is saved."""
        with self.changed:
            self.wait()
            self.held = False

    def wait(self) -> None:
        """Waits while the processes agree. Called with the lock."""
        while self.closed and not self.decided:
            self.changed.wait()
        if self.leaving:
            raise Stopped(self.number, self.reason)

    # What the monitor thread does:

    def close(self) -> tuple[int, bool]:
        """Lets no tick pass from now on: how many have, and whether there is something to lose."""
        with self.changed:
            self.closed = True
            return self.ticks, self.held

    def go(self, stop_at: int, number: int, reason: str) -> None:
        """All stop at this tick."""
        with self.changed:
            self.stop_at, self.number, self.reason = stop_at, number, reason
            self.closed = False
            self.changed.notify_all()

    def leave(self, number: int, reason: str) -> None:
        """All leave now: nobody has anything to lose."""
        with self.changed:
            self.leaving, self.number, self.reason = True, number, reason
            self.changed.notify_all()


class Signals:
    """Takes the signals of a process from `take` until `give_back`.

    A second SIGTERM or SIGUSR1 changes nothing; a second Ctrl-C does what it did before: as a rule it ends at once. Where Ctrl-C is ignored it
    stays so: shells start what runs in the background like that (`nohup ... &` in a script), since it isn't meant for it.
    """

    def __init__(self, gate: Gate, tell: Callable[[int], None]):
        """tell: called with each signal's number, in the main thread."""
        self.gate, self.tell = gate, tell
        self.old: dict[int, Any] = {}
        self.old_fd = -1
        self.old_hook = sys.unraisablehook
        self.received: set[int] = set()
        self.alone = True
        """Nobody is there to agree with: a signal raises Stopped where the main thread is."""
        self.raised = False
        self.pid = os.getpid()

    def take(self, wakeup: int) -> None:
        """From now on. Each signal's number is also written to the file `wakeup`, even while the main thread is in a library's code."""
        if threading.current_thread() is not threading.main_thread():  # Python lets no other thread take signals
            return
        ours = [number for number in TAKEN if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
        self.old = {number: signal.signal(number, self.note) for number in ours}
        self.old_fd = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self.old_hook, sys.unraisablehook = sys.unraisablehook, self.swallowed

    def give_back(self) -> None:
        """As it was before."""
        if not self.old:
            return
        signal.set_wakeup_fd(self.old_fd)
        sys.unraisablehook = self.old_hook
        for number, handler in self.old.items():
            signal.signal(number, handler)
        self.old = {}

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if os.getpid() != self.pid:  # a fork has its own life
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT:
            signal.signal(number, self.old[number])
        if self.gate.leaving or self.alone:
            if not self.raised:
                self.raised = True
                raise Stopped(self.gate.number or number, self.gate.reason)
            return
        self.received.add(number)
        if not self.gate.decided:
            self.gate.closed = True  # without the lock, which this thread may have: nobody passes before all have agreed
        self.tell(number)

    def swallowed(self, what: Any) -> None:
        """Python drops what is raised in a destructor or a callback of its garbage collector (JAX has one): then it is raised again soon after."""
        if not isinstance(what.exc_value, Stopped):
            return self.old_hook(what)
        self.raised = False
        again = threading.Timer(0.01, self.interrupt, (what.exc_value.number,))
        again.daemon = True
        again.start()

    def interrupt(self, number: int = signal.SIGUSR1) -> None:
        """Has the main thread raise Stopped, once the gate is leaving."""
        if self.old and not self.raised:
            signal.pthread_kill(threading.main_thread().ident or 0, number)
