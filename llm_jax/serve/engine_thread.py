"""One thread owns JAX and the engines. Asyncio's thread sends it requests and cancellations through a queue;
events come back by `call_soon_threadsafe`.

    thread = EngineThread(lambda log: {"default": served("default", opened, 8, 512, log)}, metrics)
    thread.start()                                        # in asyncio's thread
    await thread.ready()
    continuations = thread.submit("default", [Request("def main(")])
    async for part in continuations.parts(): ...
    continuations.close()
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm_jax.core.errors import UserError
from llm_jax.core.log import no_log
from llm_jax.evaluate.scorer import Scored, ScoreRequest
from llm_jax.generate.request import Event, Request, Result
from llm_jax.pretrained.model import OUTPUTS_NAN
from llm_jax.serve.continuations import Continuations, Part
from llm_jax.serve.errors import ApiError, engine_failed
from llm_jax.serve.models import ServedModel

if TYPE_CHECKING:  # needs the extra `serve`
    from llm_jax.serve.metrics import Metrics, ModelMetrics


@dataclass
class Running:
    """A request that an engine has."""

    whose: Continuations
    number: int
    """Its index there."""
    begun: float = 0.0
    """`time.perf_counter` when its first token came."""
    result: Result | None = None
    """Everything that it is, when it has ended."""
    unsent: list[Event] = field(default_factory=list)
    """Tokens that asyncio's thread doesn't have yet."""


TOGETHER = 0.01
"""Seconds for which tokens may wait for others, to be sent together. It matters for models that write more
than 100 tokens/s in each slot: sending each by itself would take longer than computing it."""


class EngineThread:
    """Runs the engines of all models in one thread, in turn.

    A model's prompts are scored (`score`) between steps, one request at a time. Methods are for asyncio's
    thread but for those below "The engine's thread".
    """

    def __init__(
        self,
        open_models: Callable[[Callable[[str], None]], dict[str, ServedModel]],
        metrics: Metrics,
        log: Callable[[str], None] = no_log,
    ):
        """open_models: is called in the thread, since it computes; its argument logs a line."""
        self.open_models, self.metrics, self.log = open_models, metrics, log
        self.models: dict[str, ServedModel] = {}
        """The models by name; empty until they are open."""
        self.status = "opens the models"
        """What is done before requests are taken."""
        self.is_ready = False
        self.fault: BaseException | None = None
        """What ended the thread."""
        self.open: set[Continuations] = set()
        """Those that wait or run."""
        self.scores: set[asyncio.Future[list[Scored]]] = set()
        """Scores that were asked for."""
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.running: dict[tuple[str, int], Running] = {}
        """(model, the engine's id) → whose it is; the engine thread's own."""
        self.counts: dict[str, ModelMetrics] = {}
        self.unsent: list[Running] = []
        """Those with tokens that weren't sent yet."""
        self.sent = 0.0
        """`time.perf_counter` when tokens were sent last."""
        self.seconds_each = 1.0
        """How long a continuation has a slot, by those that ended last."""
        self.scorings: deque[Callable[[], None]] = deque()
        self.closing = False
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread. Must be called in asyncio's thread."""
        self.loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        self.ended = asyncio.Event()
        """Set when the thread has ended, by `close` or by a `fault`."""
        self.thread.start()

    async def ready(self) -> None:
        """Waits until all programs are compiled. Raises what ended the thread before."""
        await self.changed.wait()
        if self.fault:
            raise self.fault

    def waiting(self, model: ServedModel) -> int:
        """Continuations of a model that wait or run."""
        return sum(one.left for one in self.open if one.model is model)

    def submit(self, model: ServedModel, requests: Sequence[Request]) -> Continuations:
        """Queues requests that the engine can run (`Engine.check_request`)."""
        made = Continuations(model, requests, self.forget)
        self.open.add(made)
        self.inbox.put(lambda: self.begin(made))
        return made

    def forget(self, made: Continuations) -> None:
        """Frees what closed continuations still have."""
        self.open.discard(made)
        if made.left:
            self.inbox.put(lambda: self.cancel(made))

    def score(self, model: ServedModel, requests: Sequence[ScoreRequest]) -> asyncio.Future[list[Scored]]:
        """The scores of continuations, with the most likely tokens in their places. Nothing is computed once
        the future is cancelled."""
        future: asyncio.Future[list[Scored]] = self.loop.create_future()
        self.scores.add(future)
        future.add_done_callback(self.scores.discard)
        self.inbox.put(lambda: self.scorings.append(lambda: self.run_scorer(model, requests, future)))
        return future

    def abort(self, error: Exception) -> None:
        """Ends everything that waits or runs with an error."""
        for made in list(self.open):
            made.fail(error)
        for future in list(self.scores):
            if not future.done():
                future.set_exception(error)

    async def close(self) -> None:
        """Ends the thread after its present step."""
        self.inbox.put(self.stop)
        await self.ended.wait()
        self.thread.join()

    # What the engine's thread calls here

    def receive(self, parts: Sequence[tuple[Continuations, Part]]) -> None:
        """Passes parts of texts on to their continuations."""
        for made, part in parts:
            if part.result is not None and math.isnan(part.events[-1].logprob):
                made.fail(ApiError(500, f"{made.model.name}: {OUTPUTS_NAN}"))
            made.receive(part)
            if not made.left:
                made.close()

    def end(self, fault: BaseException | None) -> None:
        """The thread has ended: whoever waits is informed."""
        self.fault, self.is_ready = fault, False
        self.abort(engine_failed())
        self.changed.set()
        self.ended.set()

    def become_ready(self) -> None:
        """All programs are compiled."""
        self.is_ready = True
        self.changed.set()

    # The engine's thread

    def run(self) -> None:
        """The thread's body."""
        fault: BaseException | None = None
        try:
            self.models = self.open_models(self.log)
            self.warm_up()
            while not self.closing:
                self.take_commands()
                self.work()
        except BaseException as error:
            fault = error
        self.call(self.end, fault)

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Calls a function in asyncio's thread, unless its loop is gone."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            self.closing = True

    def warm_up(self) -> None:
        """Compiles all programs."""
        for name, model in self.models.items():
            self.counts[name] = self.metrics.of_model(name)
            self.counts[name].slots.set(model.slots)
            for number, count in model.engine.warm_up():
                self.status = f"{name}: compiles program {number + 1} of {count}"
                while not self.inbox.empty():
                    self.inbox.get()()
                if self.closing:
                    return
            self.counts[name].compile_seconds.set(model.engine.programs.compile_seconds)
        self.call(self.become_ready)

    def take_commands(self) -> None:
        """Runs all commands that are in the queue; waits for one where nothing else is to be done."""
        if not self.scorings and not any(model.engine.busy for model in self.models.values()):
            self.send()
            self.inbox.get()()
        if not self.inbox.empty():
            self.send()  # a command may take long
        while not self.inbox.empty():
            self.inbox.get()()

    def work(self) -> None:
        """One step of every engine that has work, and the scores of one request."""
        for name, model in self.models.items():
            if model.engine.busy:
                begun = time.perf_counter()
                events = model.engine.step()
                self.counts[name].step.observe(time.perf_counter() - begun)
                self.deliver(name, model, events)
        if self.scorings:
            self.send()
            self.scorings.popleft()()

    def deliver(self, name: str, model: ServedModel, events: Sequence[Event]) -> None:
        """Sends the events of a step to asyncio's thread, with those before that weren't sent yet."""
        now = time.perf_counter()
        several = sum(model.engine.busy for model in self.models.values()) > 1
        urgent = several or bool(model.engine.waiting) or now - self.sent >= TOGETHER
        for event in events:
            running, result = self.running[name, event.id], model.engine.results[event.id]
            if not running.unsent:
                self.unsent.append(running)
            running.unsent.append(event)
            if len(result.tokens) == 1:
                urgent, running.begun = True, now
                self.counts[name].first.observe(now - running.whose.submitted)
                self.counts[name].prompt_tokens.inc(result.prompt_tokens)
            if math.isnan(event.logprob):
                model.engine.cancel(event.id)
            if result.finished is not None:
                urgent, running.result = True, result
                del self.running[name, event.id], model.engine.results[event.id]
                self.seconds_each += 0.1 * (now - running.begun - self.seconds_each)
        if urgent:
            self.send()

    def send(self) -> None:
        """Sends what asyncio's thread doesn't have yet, in one call. The counters change here too."""
        self.sent = time.perf_counter()
        for name, model in self.models.items():
            self.counts[name].waiting.set(len(model.engine.waiting))
            self.counts[name].running.set(sum(slot is not None for slot in model.engine.slots))
        if self.unsent:
            parts = [
                (running.whose, Part(running.number, tuple(running.unsent), running.result))
                for running in self.unsent
            ]
            for running in self.unsent:
                self.counts[running.whose.model.name].tokens.inc(len(running.unsent))
                running.unsent.clear()
            self.unsent.clear()
            self.call(self.receive, parts)

    def begin(self, made: Continuations) -> None:
        """Gives requests to their engine."""
        for number, request in enumerate(made.requests):
            try:
                id = made.model.engine.submit(request)
            except UserError as error:  # callers have checked it
                self.call(made.fail, ApiError(400, str(error)))
                return
            self.running[made.model.name, id] = Running(made, number)

    def cancel(self, made: Continuations) -> None:
        """Frees the slots of continuations that nobody waits for."""
        name, engine = made.model.name, made.model.engine
        for id in [id for (of, id), one in self.running.items() if of == name and one.whose is made]:
            engine.cancel(id)
            del self.running[name, id], engine.results[id]

    def run_scorer(
        self, model: ServedModel, requests: Sequence[ScoreRequest], future: asyncio.Future[list[Scored]]
    ) -> None:
        """Scores the prompts of one request, unless nobody waits for it any more."""
        if future.done():
            return
        try:
            model.scorer.weights = model.engine.weights  # an engine may have got others
            found = model.scorer.score(requests)
        except UserError as error:
            self.call(set_error, future, ApiError(400, str(error)))
        except RuntimeError as error:  # JAX's own, of a scorer that takes more memory than there is
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            self.call(set_error, future, ApiError(500, "There is not enough memory to score the prompt."))
        else:
            self.call(set_result, future, found)

    def stop(self) -> None:
        """Ends the thread's loop."""
        self.closing = True


def set_result(future: asyncio.Future[list[Scored]], found: list[Scored]) -> None:
    """Sets the result of a future that may have been cancelled."""
    if not future.done():
        future.set_result(found)


def set_error(future: asyncio.Future[list[Scored]], error: Exception) -> None:
    """Sets the error of a future that may have been cancelled."""
    if not future.done():
        future.set_exception(error)
