"""A server's life: it listens, compiles, takes requests, drains and ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from llm_jax.core.errors import EXIT_DONE, EXIT_INTERRUPTED, Fault, UserError
from llm_jax.core.log import no_log
from llm_jax.serve.app import make_app
from llm_jax.serve.engine_thread import EngineThread
from llm_jax.serve.errors import ApiError
from llm_jax.serve.metrics import Metrics
from llm_jax.serve.models import ServedModel
from llm_jax.serve.security import Guard
from llm_jax.serve.sockets import Listener
from llm_jax.serve.state import ServerState

DRAINED_BY = (signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1 is what Slurm is told to send before the time limit."""
LAST_SECONDS = 5.0
"""In which the last responses, errors for what didn't end by itself, are sent."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server treats requests."""

    queue: int | None = None
    timeout: float = 600.0
    drain: float = 30.0
    log_prompts: bool = False
    names: tuple[str, ...] = ()


class Listening(uvicorn.Server):
    """Uvicorn without handlers of signals: `Server` has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


class Server:
    """Serves models at one address until a signal, or a fault of the engine."""

    def __init__(
        self,
        open_models: Callable[[Callable[[str], None]], dict[str, ServedModel]],
        listener: Listener,
        token: str,
        options: ServerOptions,
        log: Callable[[str], None] = no_log,
    ):
        """open_models: see `EngineThread`. log: called with a line about what is being done."""
        metrics = Metrics()
        self.listener, self.options, self.log = listener, options, log
        self.thread = EngineThread(open_models, metrics, log)
        self.state = ServerState(
            self.thread, metrics, options.queue, options.timeout, options.log_prompts, log
        )
        guard = Guard(token, listener.host, options.names)
        config = uvicorn.Config(
            make_app(self.state, guard),
            lifespan="off", log_config=None, log_level="warning", access_log=False, server_header=False,
            http="h11", ws="none", loop="asyncio", proxy_headers=False,
            timeout_graceful_shutdown=round(LAST_SECONDS),
        )  # fmt: skip
        self.listening = Listening(config)
        self.signal = 0
        """The signal that ends the server."""

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> int:
        """Serves until a signal comes or `stop` is called; the exit code. on_ready: is called when requests
        are taken.

        Raises what ended the engine's thread: UserError for a model that can't be opened, Fault for others.
        """
        self.stopped = asyncio.Event()
        self.handle_signals()
        self.thread.start()
        serving = asyncio.create_task(self.listening.serve(sockets=[self.listener.socket]))
        ready = asyncio.create_task(self.announce(on_ready))
        ends = {asyncio.create_task(one.wait()) for one in (self.stopped, self.thread.ended)}
        try:
            await asyncio.wait({*ends, serving}, return_when=asyncio.FIRST_COMPLETED)
            was_ready = self.thread.is_ready
            if self.thread.fault is None:
                await self.drain(0 if self.signal == signal.SIGINT else self.options.drain)
            self.listening.should_exit = True
            await serving  # it sends the last responses
            if was_ready and not self.thread.ended.is_set():
                await self.thread.close()
            self.thread.inbox.put(self.thread.stop)  # one that still compiles ends when it can
        finally:
            for task in (ready, serving, *ends):
                task.cancel()
        if self.thread.fault is not None:
            raise as_one_line(self.thread.fault)
        return EXIT_INTERRUPTED if self.signal == signal.SIGINT else EXIT_DONE

    def handle_signals(self) -> None:
        """Has signals stop the server, where this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in (*DRAINED_BY, signal.SIGINT):
                if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGINT:
                    loop.add_signal_handler(number, self.stop, number)

    def stop(self, number: int = 0) -> None:
        """Ends the server: at once for SIGINT, else when what runs has ended, or `drain` seconds have
        passed."""
        if number == signal.SIGINT and self.state.is_draining:
            self.thread.abort(shutting_down())
        self.signal = self.signal or number
        self.state.is_draining = True
        self.stopped.set()

    async def announce(self, on_ready: Callable[[], None]) -> None:
        """Calls `on_ready` when requests are taken."""
        with contextlib.suppress(BaseException):  # `run` raises it
            await self.thread.ready()
            on_ready()

    async def drain(self, seconds: float) -> None:
        """Takes no more requests, waits for those that run, and ends what is left with an error."""
        self.state.is_draining = True
        if self.state.in_flight:
            self.log(f"ends when {self.state.in_flight} requests have ended, in at most {seconds:g} s")
        await self.until_idle(seconds)
        if self.state.in_flight:
            self.log(f"{self.state.in_flight} requests did not end in time: they end with an error")
        self.thread.abort(shutting_down())

    async def until_idle(self, seconds: float) -> None:
        """Waits until no request is left, but no longer than so many seconds."""
        end = asyncio.get_running_loop().time() + seconds
        while self.state.in_flight and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)


def shutting_down() -> ApiError:
    """The error of what is cut off."""
    return ApiError(503, "The server shut down before this request had ended.", code="shutting_down")


def as_one_line(fault: BaseException) -> BaseException:
    """What ended the engine's thread, for the command: a mistake of the user stays one, others are a Fault
    (their traceback is printed)."""
    if isinstance(fault, UserError | Fault):
        return fault
    sys.excepthook(type(fault), fault, fault.__traceback__)
    return Fault(f"the engine failed, and the server with it: {type(fault).__name__}: {fault}")
