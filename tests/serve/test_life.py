"""How a server starts, drains and ends, and what becomes of requests then: nothing is cut without a word."""

from __future__ import annotations

import http.client
import json
import math
import signal
import threading
from collections.abc import Iterator

import pytest

from llm_jax.core.errors import Fault, UserError
from tests.serve.serving import RunningServer, until
from tests.serve.stand_in import StandInEngine, stand_in

TEXT = "/v1/completions"
BODY = {"prompt": [1, 2], "max_tokens": 6}
STREAM = {**BODY, "stream": True}


@pytest.fixture
def engine(extra) -> StandInEngine:
    return StandInEngine()


@pytest.fixture
def start(engine) -> Iterator[object]:
    """Starts a server with the engine; it is stopped in the end."""
    made: list[RunningServer] = []

    def start_server(ready: bool = True, **options: float) -> RunningServer:
        made.append(RunningServer(lambda log: stand_in(engine), **options))
        assert not ready or made[0].is_ready.wait(30)
        return made[0]

    yield start_server
    engine.warm.set()
    if engine.permits:
        engine.permits.release(10_000)
    for server in made:
        server.stop()


def last_event(response) -> dict:
    """The last event of a stream before [DONE], which may be an error."""
    *_, last, done = [line for line in response.read().decode().split("\n\n") if line]
    assert done == "data: [DONE]"
    return json.loads(last.removeprefix("data: "))


def test_nothing_is_taken_before_all_programs_are_compiled(engine, start):
    engine.warm.clear()
    server = start(ready=False)
    assert until(lambda: server.server.thread.status == "a: compiles program 1 of 1")
    assert server.ok("/health") == {"status": "ok"}
    assert server.call("/ready")[0] == 503
    response = server.send(TEXT, BODY)
    error = json.loads(response.read())["error"]
    assert (response.status, error["code"], response.headers["retry-after"]) == (503, "starting", "2")
    assert "compiles program 1 of 1" in error["message"]
    engine.warm.set()
    assert server.is_ready.wait(30)
    assert server.ok("/ready") == {"status": "ready"}
    assert server.ok(TEXT, BODY)["choices"][0]["text"] == "aaaaaa"


def test_sigterm_lets_running_requests_end_and_takes_no_others(engine, start):
    engine.permits = threading.Semaphore(1)
    server = start()
    response = server.send(TEXT, STREAM)
    server.loop.call_soon_threadsafe(server.server.stop, signal.SIGTERM)
    assert until(lambda: server.server.state.is_draining)
    assert server.call("/ready")[0] == 503
    status, answer = server.call(TEXT, BODY)
    assert (status, answer["error"]["code"]) == (503, "draining")
    engine.permits.release(100)
    assert last_event(response)["choices"][0]["finish_reason"] == "length"
    server.thread.join(30)
    assert (server.code, server.error) == (0, None)


def test_what_does_not_end_in_time_ends_with_an_error(engine, start):
    engine.permits = threading.Semaphore(1)
    server = start(drain=0.1)
    response = server.send(TEXT, STREAM)
    statuses: list[int] = []
    other = threading.Thread(target=lambda: statuses.append(server.call(TEXT, BODY)[0]))
    other.start()
    assert until(lambda: len(server.server.thread.open) == 2)
    server.loop.call_soon_threadsafe(server.server.stop, signal.SIGTERM)
    assert last_event(response)["error"]["code"] == "shutting_down"
    other.join(30)
    assert statuses == [503]
    engine.permits.release(100)
    server.thread.join(30)
    assert (server.code, server.error) == (0, None)


def test_ctrl_c_ends_what_runs_at_once(engine, start):
    engine.permits = threading.Semaphore(1)
    server = start(drain=1000)
    response = server.send(TEXT, STREAM)
    server.loop.call_soon_threadsafe(server.server.stop, signal.SIGINT)
    assert last_event(response)["error"]["code"] == "shutting_down"
    engine.permits.release(100)
    server.thread.join(30)
    assert server.code == 130


def test_a_fault_of_the_engine_ends_the_server_and_hangs_nobody(engine, start, capsys):
    engine.permits = threading.Semaphore(1)
    server = start()
    response = server.send(TEXT, STREAM)
    statuses: list[int] = []
    other = threading.Thread(target=lambda: statuses.append(server.call(TEXT, BODY)[0]))
    other.start()
    assert until(lambda: len(server.server.thread.open) == 2)
    engine.error = RuntimeError("the device is gone")
    engine.permits.release(100)
    assert last_event(response)["error"]["type"] == "server_error"
    other.join(30)
    assert statuses == [500]
    server.thread.join(30)
    assert isinstance(server.error, Fault)
    assert str(server.error) == "the engine failed, and the server with it: RuntimeError: the device is gone"
    assert "Traceback" in capsys.readouterr().err


def test_a_model_that_cannot_be_opened_is_the_users_mistake(extra):
    def fail(log):
        raise UserError("x: no such folder")

    server = RunningServer(fail)
    server.thread.join(30)
    assert isinstance(server.error, UserError)


def test_nan_ends_a_request_and_not_the_server(engine, start):
    server = start()
    engine.logprob = math.nan
    status, answer = server.call(TEXT, BODY)
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert "outputs NaN" in answer["error"]["message"]
    engine.logprob = -1.0
    server.ok(TEXT, BODY)
    assert until(lambda: not any(server.entries))


def test_a_request_ends_at_the_timeout(engine, start):
    engine.permits = threading.Semaphore(1)
    server = start(timeout=0.1)
    status, answer = server.call(TEXT, BODY)
    assert (status, answer["error"]["type"]) == (504, "timeout_error")
    assert last_event(server.send(TEXT, STREAM))["error"]["code"] == "timeout"


def test_a_stream_has_comments_while_nothing_comes(engine, start, monkeypatch):
    from llm_jax.serve import responses

    monkeypatch.setattr(responses, "QUIET", 0.05)
    engine.permits = threading.Semaphore(0)
    response = start().send(TEXT, STREAM)
    assert response.readline() + response.readline() == b": waiting\n\n"
    engine.permits.release(100)
    assert response.read().decode().endswith("data: [DONE]\n\n")


def test_a_bug_in_a_stream_ends_it_with_a_word(engine, start, monkeypatch):
    from llm_jax.serve.completions import CompletionAnswer

    async def chunks(self):
        yield self.chunk(0, text="a", logprobs=None)
        raise KeyError("a bug")

    monkeypatch.setattr(CompletionAnswer, "chunks", chunks)
    server = start()
    response = server.send(TEXT, STREAM)
    with pytest.raises(http.client.IncompleteRead) as raised:
        response.read()
    assert b'"type":"server_error"' in raised.value.partial
    assert until(lambda: not any(server.entries))


def test_prompts_are_logged_where_the_user_wants_it(engine, start):
    server = start(log_prompts=True)
    server.ok(TEXT, {"prompt": [65, 66], "max_tokens": 2})
    assert any(line.endswith("'AB' -> 'aa'") for line in server.lines)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_after_the_step_that_runs(engine, start, stream):
    engine.permits = threading.Semaphore(2)
    server = start()
    connection = server.connect()
    body = json.dumps({**BODY, "stream": stream, "max_tokens": 90})
    connection.request("POST", TEXT, body, {"Authorization": "Bearer a-token-of-the-tests"})
    assert until(lambda: engine.steps == 2)
    connection.close()
    assert until(lambda: not server.server.thread.open)  # it was noticed: no step has passed
    assert engine.steps == 2
    engine.permits.release(100)
    assert until(lambda: not any(server.entries))
    assert engine.steps == 3
    assert "llm_jax_clients_left_total 1.0" in server.send("/metrics").read().decode()


def test_a_prompt_that_waits_when_its_client_leaves_is_never_read(engine, start):
    engine.permits = threading.Semaphore(1)
    server = start()
    first = server.send(TEXT, {**STREAM, "n": 2})
    connection = server.connect()
    body = json.dumps(BODY)
    connection.request("POST", TEXT, body, {"Authorization": "Bearer a-token-of-the-tests"})
    assert until(lambda: len(server.server.thread.open) == 2)
    connection.close()
    assert until(lambda: server.server.state.in_flight == 1)
    engine.permits.release(100)
    assert "error" not in last_event(first)
    assert until(lambda: not any(server.entries))
    assert engine.steps == BODY["max_tokens"]
