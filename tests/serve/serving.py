"""A real server in this process, at a free port of the loopback, with two models of random weights."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax.data import Tokenizer, TokenizerConfig, load_tokenizer
from llm_jax.data.sentencepiece_tokenizer import train
from llm_jax.experiment import Experiment
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.pretrained.model import PretrainedModel
from llm_jax.serve.models import ServedModel, served
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import TrainModel
from tests.data.conftest import documents

DATA = Path(__file__).parent.parent / "data"
TOKEN = "a-token-of-the-tests"
SLOTS, MOST = 16, 64
CONFIG = ModelConfig(layers=1, embed=16, heads=2, mlp=16, vocab=352, init_std=0.2)


def chat_folder(folder: Path) -> Path:
    """A folder with the tokenizer and template of a chat model."""
    shutil.copytree(DATA / "chat_tokenizer", folder)
    shutil.copy(DATA / "chat_templates" / "chatml.jinja", folder / "chat_template.jinja")
    return folder


def opened(path: Path, tokenizer: Tokenizer, **changes: Any) -> PretrainedModel:
    """A model with random weights."""
    config, layout = dataclasses.replace(CONFIG, **changes).resolved(), preset("single")
    program = TrainModel(config, OptimizerConfig(), MeshPlacement(layout, make_mesh(layout, {})))
    random = np.random.default_rng(5)
    parameters = jax.tree.map(
        lambda w: (0.3 * random.standard_normal(w.shape)).astype(w.dtype), program.abstract
    )
    parameters = jax.device_put(parameters, program.shardings("stored"))
    return PretrainedModel(path, Experiment(model=config), program, parameters, tokenizer, 0)


def two_models(folder: Path) -> dict[str, PretrainedModel]:
    """One with a byte-level tokenizer and a chat template, one with SentencePiece and byte fallback."""
    chat = chat_folder(folder / "chat")
    (folder / "text").mkdir()
    sentencepiece = train(documents(100), TokenizerConfig(vocab=320))
    sentencepiece.save(folder / "text")
    return {
        "chat": opened(chat, load_tokenizer(chat, "tokenizer")),
        "text": opened(folder / "text", load_tokenizer(folder / "text", "tokenizer")),
    }


def models_of(opened_models: dict[str, PretrainedModel]) -> dict[str, ServedModel]:
    """The same with their engines."""
    return {name: served(name, one, SLOTS, MOST, lambda line: None) for name, one in opened_models.items()}


class RunningServer:
    """A server in a thread of its own."""

    def __init__(self, models: Callable[[Any], dict[str, ServedModel]], **options: Any):
        from llm_jax.serve.server import Server, ServerOptions
        from llm_jax.serve.sockets import listen_at_port

        self.lines: list[str] = []
        self.listener = listen_at_port("127.0.0.1", 0)
        self.port = self.listener.port
        self.server = Server(models, self.listener, TOKEN, ServerOptions(**options), self.lines.append)
        self.code: int | None = None
        self.error: BaseException | None = None
        self.is_ready = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        """The thread's body."""

        async def body() -> int:
            self.loop = asyncio.get_running_loop()
            return await self.server.run(self.is_ready.set)

        try:
            self.code = asyncio.run(body())
        except BaseException as error:
            self.error = error
        finally:
            self.is_ready.set()

    def stop(self, number: int = 0) -> None:
        """Stops it as a signal does, and waits for its end."""
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.server.stop, number)
        self.thread.join(30)
        assert not self.thread.is_alive()

    def connect(self) -> http.client.HTTPConnection:
        """A connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def send(
        self, path: str, body: Any = None, method: str = "", headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """Sends a request and returns its response, whose body hasn't been read. body: an object or bytes."""
        given = headers if headers is not None else {"Authorization": f"Bearer {TOKEN}"}
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = self.connect()
        connection.request(method or ("GET" if body is None else "POST"), path, content, given)
        response = connection.getresponse()
        response.connection = connection  # type: ignore[attr-defined]
        return response

    def call(self, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        """(status, JSON of the response)."""
        response = self.send(path, body, **more)
        content = response.read()
        response.connection.close()  # type: ignore[attr-defined]
        return response.status, json.loads(content)

    def ok(self, path: str, body: Any = None) -> Any:
        """The JSON of a response with status 200."""
        status, found = self.call(path, body)
        assert status == 200, found
        return found

    def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks of a stream that ends as it should."""
        response = self.send(path, {**body, "stream": True})
        assert response.status == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.read().decode().split("\n\n") if line]
        response.connection.close()  # type: ignore[attr-defined]
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines if not line.startswith(":")]

    @property
    def entries(self) -> tuple[int, ...]:
        """What is left of requests anywhere: open ones, those of the engine thread, results, busy slots."""
        thread = self.server.thread
        engines = [model.engine for model in thread.models.values()]
        return (
            len(thread.open), len(thread.running), len(thread.scores), len(thread.scorings),
            self.server.state.in_flight,
            *(len(engine.results) + len(engine.waiting) + sum(map(bool, engine.slots)) for engine in engines),
        )  # fmt: skip


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Waits until a condition holds; whether it does."""
    wait = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return True
        wait.wait(0.01)
    return condition()


def running(models: Callable[[Any], dict[str, ServedModel]], **options: Any) -> Iterator[RunningServer]:
    """A server that is ready, and stopped in the end."""
    server = RunningServer(models, **options)
    try:
        assert server.is_ready.wait(300)
        if server.error:
            raise server.error
        yield server
    finally:
        server.stop()
