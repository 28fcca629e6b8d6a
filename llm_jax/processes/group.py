"""The processes of one run: they meet, tell each other where they are, stop together, and none waits for one that is gone.

All of it goes over plain TCP between monitor threads, beside JAX and before it is imported, so it works while main threads are in a collective,
a compiler or a library. A run of one process has the same group, without sockets. How a command uses it:

  with Group(read_task(os.environ)) as group:   # before `import jax`: from here on signals are taken
      experiment = ...                          # a UserError here is told once, not by every process
      group.join(experiment.cluster)            # all meet, and the monitor thread begins to watch
      values = group.exchange("versions", mine, seconds=60)
      group.record_in(run_dir)                  # faults are kept there from now on
      group.mark("compile")                     # phases: start, data, compile, train, evaluate, save, restore, sample, end
      for step in ...:
          group.mark("train", step, sha)
          ...
          group.hold()                          # the first step is done: a signal now stops the run at a poll, and not at once
          if group.poll():                      # the signal that stops the run here, or None; the same on every process
              save, and leave

`mark`, `poll`, `check`, `hold`, `release` and `exchange` are called in the same order by the main threads of all processes; a poll costs less than
a microsecond. Of a run that hangs, the process that made the fewest of these calls is the one to blame, so mark what may hang, before and after it.
`received` only changes in a poll. What an exception does follows from its kind: where several processes run, the block's end tells the others and
ends this process with the exit code (`llm_jax.core.errors`); alone, it is raised on. `Stopped` is raised where a signal came before `hold`.

Where a process fails, is killed, or hangs, the monitor threads of the others print one line that names it, and end their processes with EXIT_PEER.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from llm_jax.core.errors import EXIT_FAULT, EXIT_INTERRUPTED, Fault, Stopped, UserError
from llm_jax.processes import fault_log
from llm_jax.processes.config import ClusterConfig
from llm_jax.processes.fault_log import end_process, last_words
from llm_jax.processes.launcher import Task
from llm_jax.processes.monitor import Mark, Monitor
from llm_jax.processes.rendezvous import meet
from llm_jax.processes.signals import Gate, Signals

TELL_SECONDS = 10.0
"""So long a failing process waits for the others to be told."""


class Group:
    """The processes of one run, as one of them sees them."""

    def __init__(self, task: Task):
        self.task = task
        self.gate = Gate()
        wake_read, wake_write = socket.socketpair()
        wake_read.setblocking(False)
        wake_write.setblocking(False)
        self.wake = wake_read, wake_write
        self.signals = Signals(self.gate, self.tell)
        self.where = Mark()
        self.monitor: Monitor | None = None
        self.exchanges = 0

    def tell(self, number: int) -> None:
        """Has the monitor thread look at a signal."""
        with contextlib.suppress(BlockingIOError):
            self.wake[1].send(bytes([number]))

    def __enter__(self) -> Group:
        self.signals.take(self.wake[1].fileno())
        return self

    def join(self, config: ClusterConfig | None = None) -> None:
        """Waits until all processes are here. Raises Fault, naming who is missing, after cluster.start_seconds."""
        config = config or ClusterConfig()
        self.monitor = Monitor(self.task, config, self.gate, self.signals, self.where, self.wake)
        met = meet(self.task, config.start_seconds)
        self.signals.alone = False
        self.monitor.start(*met)
        if self.task.size > 1:
            threading.excepthook = self.thread_failed

    @property
    def hosts(self) -> list[str]:
        """The host of each process, by rank."""
        return self.monitor.hosts if self.monitor else [self.task.host]

    # Where this process is:

    def mark(self, phase: str, step: int | None = None, batch: str | None = None) -> None:
        """This process got further: to a phase, to a step (counted from 1), with a batch of this fingerprint, which rank 0 at least knows.

        Costs next to nothing.
        """
        mark = self.where
        mark.phase = phase
        if step is not None:
            mark.step, mark.batch = step, batch
            mark.batches.append((step, batch))
        mark.move()

    def record_in(self, run_dir: str | Path) -> None:
        """Faults are kept in this run folder from now on: faults.jsonl, and stacks in faults/."""
        assert self.monitor, "join comes first"
        self.monitor.run_dir = Path(run_dir).absolute()

    # What the processes do together:

    def exchange(self, name: str, value: Any = None, seconds: float | None = None) -> list[Any]:
        """Everyone's value, by rank; a barrier too. Values are what JSON can say.

        `seconds`: after so long without all of them the run ends, naming who is late; None: waits as long as all are alive.
        """
        monitor = self.monitor
        assert monitor, "join comes first"
        self.where.move()
        self.exchanges += 1
        count = self.exchanges
        monitor.post({"kind": "exchange", "count": count, "name": name, "value": value, "seconds": seconds})
        with monitor.changed:
            while count not in monitor.results:
                monitor.changed.wait()
            return monitor.results.pop(count)

    # Stopping:

    @property
    def received(self) -> int | None:
        """The signal that stops the run, since a poll returned it; else None."""
        return self.gate.received

    @property
    def held(self) -> bool:
        """Whether there is something to lose."""
        return self.gate.held

    @property
    def reason(self) -> str:
        """Why the run stops: the signal's name, and who got it if not all."""
        return self.gate.reason

    def poll(self) -> int | None:
        """The signal that stops the run here, the same on every process, or None. Raises Stopped where nothing was held yet."""
        self.where.move()
        return self.gate.poll()

    def check(self) -> None:
        """A poll that raises Stopped."""
        self.where.move()
        self.gate.check()

    def hold(self) -> None:
        """From now on there is something to lose: a signal stops the run at a poll. Before, it ends it wherever it is."""
        self.gate.hold()

    def release(self) -> None:
        """There is nothing to lose any more, as before the first `hold`."""
        self.gate.release()

    # The end:

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self.monitor and self.monitor.thread.is_alive():
                if error is None or isinstance(error, Stopped):
                    self.close(error)
                elif self.task.size > 1:
                    self.fail(error)
                else:
                    if not isinstance(error, (UserError, KeyboardInterrupt, SystemExit)):
                        fault_log.append(self.monitor.run_dir, self.record(error))
                    self.say_bye()
        finally:
            self.signals.give_back()
            for end in self.wake:
                end.close()

    def close(self, error: Stopped | None = None) -> None:
        """Waits until all processes have come to their end."""
        assert self.monitor
        self.say_bye()
        if self.task.size > 1 and self.gate.leaving:  # no barrier of JAX's, as at a normal exit: some never come to it
            if error and self.task.rank == 0:
                last_words(error.early)
            self.monitor.end_with(Stopped(self.gate.number).code)
        for link in self.monitor.links.values():
            link.close()

    def say_bye(self) -> None:
        """The thread ends when all have said it."""
        monitor = self.monitor
        assert monitor
        self.mark("end")
        monitor.post({"kind": "bye"})
        with monitor.changed:
            while not monitor.done:
                monitor.changed.wait()
        monitor.thread.join()

    def fail(self, error: BaseException) -> None:
        """Tells all processes that this one failed, and ends it: EXIT_FAULT, or EXIT_USER_ERROR for what the user can mend."""
        monitor = self.monitor
        assert monitor
        if isinstance(error, KeyboardInterrupt):  # a second Ctrl-C, which the others got too
            last_words("interrupted")
            end_process(EXIT_INTERRUPTED)
        if isinstance(error, UserError):
            monitor.error = f"error: {error}"
            monitor.post({"kind": "mistake", "text": str(error)})
        else:
            monitor.error = f"error: {error}" if isinstance(error, Fault) else "".join(traceback.format_exception(error)).rstrip()
            monitor.post({"kind": "fault", "fault": self.record(error)})
        time.sleep(TELL_SECONDS)  # the monitor thread ends this process, when all know of its failure or of one that came first
        last_words(monitor.error)
        end_process(EXIT_FAULT)

    def blame(self, rank: int, message: str) -> None:
        """Ends the run because of what a process is or does wrong, which need not be this one. Called on rank 0; the others wait in an exchange.

        Raises Fault in a run of one process.
        """
        if self.task.size == 1 or self.monitor is None:
            raise Fault(message)
        fault = {**self.record(Fault(message)), "kind": "unfit", "rank": rank, "host": self.hosts[rank]}
        self.monitor.post({"kind": "fault", "fault": fault})
        time.sleep(TELL_SECONDS)
        end_process(EXIT_FAULT)

    def record(self, error: BaseException) -> fault_log.Record:
        """An exception as a fault."""
        text = " ".join(str(error).split())
        return {
            "time": time.time(),
            "kind": "exception",
            "rank": self.task.rank,
            "host": self.task.host,
            "phase": self.where.phase,
            "step": self.where.step,
            "batch": self.where.batch,
            "message": text if isinstance(error, Fault) else f"{type(error).__name__}: {text}"[:1000],
            "job": self.task.job,
            "restart": self.task.restart,
        }

    def thread_failed(self, arguments: threading.ExceptHookArgs) -> None:
        """An exception that ends a thread is this process's failure: nobody else would notice what the thread doesn't do any more."""
        if arguments.exc_value and not isinstance(arguments.exc_value, SystemExit):
            self.fail(arguments.exc_value)


@contextlib.contextmanager
def alone(config: ClusterConfig | None = None) -> Iterator[Group]:
    """The group of a run of one process."""
    with Group(Task()) as group:
        group.join(config)
        yield group
