"""SIGTERM, SIGUSR1 and Ctrl-C: they stop a run at a step boundary, with everything saved, and all its
processes at one step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from llm_jax.core.errors import Stopped

HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopBarrier:
    """Where the main thread checks whether to stop (`poll`), and where it waits while the processes agree at
    which poll they stop.

    Each `poll` is a tick; all processes poll at the same places of the program, so their ticks can be
    compared. On a request to stop, the monitor thread of every process blocks its barrier and sends how many
    ticks it has passed; all stop at the first tick that none has passed. A process that waits for others in a
    collective doesn't delay this, since its monitor thread answers; those behind pass the polls up to that
    tick, so no process waits for one that has stopped. Before `arm` there is no work to save, and the
    processes leave wherever they are.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.ticks = 0
        """Polls that have passed."""
        self.armed = False
        """Whether there is work to save."""
        self.received: int | None = None
        """The signal that stops the run, set by the poll at which it stops."""
        self.blocked = False
        """Whether no poll may pass, until the processes have agreed."""
        self.stop_tick: int | None = None
        self.leaving = False
        self.signal, self.reason = 0, ""

    @property
    def decided(self) -> bool:
        """Whether the processes have agreed where to stop."""
        return self.leaving or self.stop_tick is not None

    # Called by the main thread:

    def poll(self) -> int | None:
        """Passes one tick: the signal that stops the run here, or None. Raises Stopped where there is no work
        to save yet."""
        with self.changed:
            self.wait()
            self.ticks += 1
            if self.stop_tick is not None and self.ticks >= self.stop_tick:
                self.received = self.signal
            return self.received

    def check(self) -> None:
        """Passes one tick and raises Stopped if the run stops here. If an earlier poll has stopped it, raises
        without a tick."""
        if self.received is not None or self.poll() is not None:
            raise Stopped(self.signal, self.reason)

    def arm(self) -> None:
        """From now on there is work to save: a signal stops the run at a poll."""
        if self.armed:
            return
        with self.changed:
            self.wait()
            self.armed = True

    def disarm(self) -> None:
        """All work is saved: a signal ends the run wherever it is, as before `arm`."""
        with self.changed:
            self.wait()
            self.armed = False

    def wait(self) -> None:
        """Waits while the processes agree; raises Stopped if they leave. The caller holds the lock."""
        while self.blocked and not self.decided:
            self.changed.wait()
        if self.leaving:
            raise Stopped(self.signal, self.reason)

    # Called by the monitor thread:

    def block(self) -> tuple[int, bool]:
        """Lets no poll pass from now on. Returns how many have passed, and whether there is work to save."""
        with self.changed:
            self.blocked = True
            return self.ticks, self.armed

    def stop_at(self, tick: int, number: int, reason: str) -> None:
        """Lets polls pass again up to `tick`, which is where all processes stop."""
        with self.changed:
            self.stop_tick, self.signal, self.reason = tick, number, reason
            self.blocked = False
            self.changed.notify_all()

    def leave_now(self, number: int, reason: str) -> None:
        """Has the next poll raise Stopped: no process has work to save."""
        with self.changed:
            self.leaving, self.signal, self.reason = True, number, reason
            self.changed.notify_all()


class SignalHandlers:
    """The process's handlers of SIGTERM, SIGUSR1 and Ctrl-C, from `install` to `restore`.

    A second SIGTERM or SIGUSR1 changes nothing; a second Ctrl-C does what it did before `install`, which as a
    rule ends the process at once. Where SIGINT is ignored it stays ignored: shells start background processes
    so (`nohup ... &` in a script), since Ctrl-C isn't for them.
    """

    def __init__(self, barrier: StopBarrier, notify: Callable[[int], None]):
        """notify: is called with each signal's number, in the main thread."""
        self.barrier, self.notify = barrier, notify
        self.old: dict[int, Any] = {}
        self.old_fd = -1
        self.old_hook = sys.unraisablehook
        self.received: set[int] = set()
        self.alone = True
        """Until the rendezvous: a signal raises Stopped in the main thread, without asking other
        processes."""
        self.raised = False
        """Whether Stopped was raised."""
        self.pid = os.getpid()

    def install(self, wakeup: int) -> None:
        """Replaces the handlers. Python also writes each signal's number to the file descriptor `wakeup`,
        even while the main thread is in a library's code. Does nothing outside the main thread, where Python
        sets no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        ours = [
            number
            for number in HANDLED
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
        ]
        self.old = {number: signal.signal(number, self.handle) for number in ours}
        self.old_fd = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self.old_hook, sys.unraisablehook = sys.unraisablehook, self.on_unraisable

    def restore(self) -> None:
        """Puts the handlers back that were there before `install`."""
        if not self.old:
            return
        signal.set_wakeup_fd(self.old_fd)
        if sys.unraisablehook == self.on_unraisable:  # else another one lies over it, which calls it
            sys.unraisablehook = self.old_hook
        for number, handler in self.old.items():
            signal.signal(number, handler)
        self.old = {}

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal, in the main thread."""
        if os.getpid() != self.pid:  # a fork, which the signal ends
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT:
            signal.signal(number, self.old[number])
        if self.barrier.leaving or self.alone:
            if not self.raised:
                self.raised = True
                raise Stopped(self.barrier.signal or number, self.barrier.reason)
            return
        self.received.add(number)
        if not self.barrier.decided:
            # Without the lock, which this thread may hold. No poll passes before all have agreed.
            self.barrier.blocked = True
        self.notify(number)

    def on_unraisable(self, unraisable: Any) -> None:
        """Raises Stopped again soon where Python dropped it: in a destructor, or in a garbage-collector
        callback (JAX has one)."""
        if not isinstance(unraisable.exc_value, Stopped):
            return self.old_hook(unraisable)
        self.raised = False
        again = threading.Timer(0.01, self.interrupt, (unraisable.exc_value.number,))
        again.daemon = True
        again.start()

    def interrupt(self, number: int = signal.SIGUSR1) -> None:
        """Has the main thread raise Stopped, once the barrier is leaving."""
        if self.old and not self.raised:
            signal.pthread_kill(threading.main_thread().ident or 0, number)
