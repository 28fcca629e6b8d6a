"""The processes of one run: they connect, report their progress, stop at one step, and none waits for one
that has died.

This goes over plain TCP between monitor threads, beside JAX and before it is imported, so it works while main
threads are in a collective, a compiler or a library. A run of one process has a group without sockets. How a
command uses it:

  with Group(read_task(os.environ)) as group:   # before `import jax`: from here on signals are handled
      experiment = ...                     # a UserError here is printed once, not by every process
      group.join(experiment.cluster)       # the rendezvous; then the monitor thread begins to watch
      values = group.exchange("versions", mine, seconds=60)
      group.record_faults_in(run_dir)      # faults are recorded there from now on
      group.mark("compile")                # or start, data, train, evaluate, save, restore, sample, end
      for step in ...:
          group.mark("train", step, sha)
          ...
          group.arm()                      # the first step is done: a signal stops the run at a poll now
          if group.poll():                 # the signal that stops the run here, or None
              save, and leave

The main threads of all processes call `mark`, `poll`, `check`, `arm`, `disarm` and `exchange` in one order; a
poll costs less than a microsecond. The culprit of a hang is the process that has made the fewest of these
calls, so call `mark` before and after what may hang. `received` only changes in a poll. With several
processes, an exception at the end of the `with` block is sent to the others, and ends this process with the
exit code for its class (`llm_jax.core.errors`); with one process it is raised on. `Stopped` is raised where a
signal comes before `arm`.

Where a process fails, is killed, or hangs, the monitor threads of the others print one line that names it,
and end their processes with EXIT_PEER. docs/processes.md has the messages behind this.
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
from llm_jax.processes.fault_log import end_process, write_stderr
from llm_jax.processes.launcher import LaunchedProcess
from llm_jax.processes.messages import Exchange, Goodbye, ReportFault, ReportUserError
from llm_jax.processes.monitor import Monitor, Progress
from llm_jax.processes.rendezvous import connect_all
from llm_jax.processes.signals import SignalHandlers, StopBarrier

REPORT_SECONDS = 10.0
"""A process that has failed waits at most so long for its report to reach the others."""


class Group:
    """The processes of one run, as one of them sees them."""

    def __init__(self, task: LaunchedProcess):
        self.task = task
        self.barrier = StopBarrier()
        wake_read, wake_write = socket.socketpair()
        wake_read.setblocking(False)
        wake_write.setblocking(False)
        self.wake = wake_read, wake_write
        self.handlers = SignalHandlers(self.barrier, self.wake_for_signal)
        self.progress = Progress()
        self.monitor: Monitor | None = None
        self.exchanges = 0

    def wake_for_signal(self, number: int) -> None:
        """Wakes the monitor thread, which reads the signal's number."""
        with contextlib.suppress(BlockingIOError):
            self.wake[1].send(bytes([number]))

    def __enter__(self) -> Group:
        self.handlers.install(self.wake[1].fileno())
        return self

    def join(self, config: ClusterConfig | None = None) -> None:
        """Waits until all processes have connected. Raises Fault, naming a process that is missing, after
        cluster.start_seconds."""
        config = config or ClusterConfig()
        self.monitor = Monitor(self.task, config, self.barrier, self.handlers, self.progress, self.wake)
        hosts, connections = connect_all(self.task, config.start_seconds)
        self.handlers.alone = False
        self.monitor.start(hosts, connections)
        if self.task.size > 1:
            threading.excepthook = self.thread_failed

    @property
    def hosts(self) -> list[str]:
        """The host of each process, by rank."""
        return self.monitor.hosts if self.monitor else [self.task.host]

    # Where this process is:

    def mark(self, phase: str, step: int | None = None, batch: str | None = None) -> None:
        """This process made progress: it is in this phase, at this step (counted from 1), with a batch of
        this fingerprint.

        Rank 0 must give the fingerprint; others may. Costs next to nothing.
        """
        progress = self.progress
        progress.phase = phase
        if step is not None:
            progress.step, progress.batch = step, batch
            progress.batches.append((step, batch))
        progress.advance()

    def record_faults_in(self, run_dir: str | Path) -> None:
        """From now on faults are recorded in this run folder: faults.jsonl, and stacks in faults/."""
        assert self.monitor, "join comes first"
        self.monitor.run_dir = Path(run_dir).absolute()

    # What the processes do together:

    def exchange(self, name: str, value: Any = None, seconds: float | None = None) -> list[Any]:
        """The values of all processes, by rank, which can be written as JSON. It is a barrier too.

        `seconds`: the run ends if not all have come within so long, naming who is missing; None: waits as
        long as all are alive.
        """
        monitor = self.monitor
        assert monitor, "join comes first"
        self.progress.advance()
        self.exchanges += 1
        number = self.exchanges
        monitor.post(Exchange(number, name, value, seconds))
        with monitor.changed:
            while number not in monitor.results:
                monitor.changed.wait()
            return monitor.results.pop(number)

    # Stopping:

    @property
    def received(self) -> int | None:
        """The signal that stops the run, since a poll returned it; else None."""
        return self.barrier.received

    @property
    def armed(self) -> bool:
        """Whether there is work to save."""
        return self.barrier.armed

    @property
    def reason(self) -> str:
        """Why the run stops: the signal's name, and which process received it if not this one."""
        return self.barrier.reason

    def poll(self) -> int | None:
        """The signal that stops the run here, equal in all processes, or None. Raises Stopped where there is
        no work to save yet."""
        self.progress.advance()
        return self.barrier.poll()

    def check(self) -> None:
        """Polls, and raises Stopped if the run stops here."""
        self.progress.advance()
        self.barrier.check()

    def arm(self) -> None:
        """From now on there is work to save: a signal stops the run at a poll. Before, it ends the run
        wherever it is."""
        self.barrier.arm()

    def disarm(self) -> None:
        """All work is saved: a signal ends the run wherever it is, as before the first `arm`."""
        self.barrier.disarm()

    # The end:

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.monitor and self.monitor.thread.is_alive():
                if error is None or isinstance(error, Stopped):
                    self.close(error)
                elif self.task.size > 1:
                    self.fail(error)
                else:
                    if not isinstance(error, (UserError, KeyboardInterrupt, SystemExit)):
                        fault_log.append(self.monitor.run_dir, self.fault_of(error))
                    self.say_goodbye()
        finally:
            self.handlers.restore()
            for end in self.wake:
                end.close()

    def close(self, error: Stopped | None = None) -> None:
        """Waits until all processes have reached their end, and closes the connections."""
        assert self.monitor
        self.say_goodbye()
        if (
            self.task.size > 1 and self.barrier.leaving
        ):  # without JAX's barrier at a normal exit, which some never reach
            if error and self.task.rank == 0:
                write_stderr(error.early)
            self.monitor.end_with(Stopped(self.barrier.signal).code)
        for connection in self.monitor.connections.values():
            connection.close()

    def say_goodbye(self) -> None:
        """Reports that this process has reached its end, and waits until all have."""
        monitor = self.monitor
        assert monitor
        self.mark("end")
        monitor.post(Goodbye())
        with monitor.changed:
            while not monitor.done:
                monitor.changed.wait()
        monitor.thread.join()

    def fail(self, error: BaseException) -> None:
        """Reports this process's failure to all, and ends it: with EXIT_FAULT, or EXIT_USER_ERROR for a
        UserError."""
        monitor = self.monitor
        assert monitor
        if isinstance(error, KeyboardInterrupt):  # a second Ctrl-C, which the others received too
            write_stderr("interrupted")
            end_process(EXIT_INTERRUPTED)
        if isinstance(error, UserError):
            monitor.error = f"error: {error}"
            monitor.post(ReportUserError(str(error)))
        else:
            monitor.error = (
                f"error: {error}"
                if isinstance(error, Fault)
                else "".join(traceback.format_exception(error)).rstrip()
            )
            monitor.post(ReportFault(self.fault_of(error)))
        # The monitor thread ends this process, when all know of its failure or of one that came first.
        time.sleep(REPORT_SECONDS)
        write_stderr(monitor.error)
        end_process(EXIT_FAULT)

    def abort_naming(self, rank: int, message: str) -> None:
        """Ends the run because of a process, by its rank, which may be another than this one. Called in rank
        0 while the others wait in an exchange. Raises Fault in a run of one process."""
        if self.task.size == 1 or self.monitor is None:
            raise Fault(message)
        fault = {**self.fault_of(Fault(message)), "kind": "unfit", "rank": rank, "host": self.hosts[rank]}
        self.monitor.post(ReportFault(fault))
        time.sleep(REPORT_SECONDS)
        end_process(EXIT_FAULT)

    def fault_of(self, error: BaseException) -> fault_log.Record:
        """The fault record of an exception in this process."""
        text = " ".join(str(error).split())
        return {
            "time": time.time(),
            "kind": "exception",
            "rank": self.task.rank,
            "host": self.task.host,
            "phase": self.progress.phase,
            "step": self.progress.step,
            "batch": self.progress.batch,
            "message": text if isinstance(error, Fault) else f"{type(error).__name__}: {text}"[:1000],
            "job": self.task.job,
            "restart": self.task.restart,
        }

    def thread_failed(self, arguments: threading.ExceptHookArgs) -> None:
        """An exception that ends any thread is this process's failure: nothing else would notice that its
        work isn't done any more."""
        if arguments.exc_value and not isinstance(arguments.exc_value, SystemExit):
            self.fail(arguments.exc_value)


@contextlib.contextmanager
def alone(config: ClusterConfig | None = None) -> Iterator[Group]:
    """The group of a run of one process."""
    with Group(LaunchedProcess()) as group:
        group.join(config)
        yield group
