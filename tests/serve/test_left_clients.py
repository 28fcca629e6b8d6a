"""Clients that leave, at any moment, leave nothing behind."""

from __future__ import annotations

import gc
import json
import os
import socket
from pathlib import Path

import pytest

from tests.serve.serving import TOKEN, RunningServer, until


def leave(server: RunningServer, number: int) -> None:
    """A client that sends a request and is gone: at once, in the middle of its request or of a stream."""
    body = json.dumps(
        {"prompt": ["a"] * (1 + number % 3), "max_tokens": 60, "stream": number % 2 == 0, "model": "text"}
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        if number % 5 == 4:
            connection.sendall(head.encode() + body[: len(body) // 2])
            return
        connection.sendall(head.encode() + body)
        if number % 4 == 0:
            connection.settimeout(20)
            connection.recv(64)


def test_two_hundred_clients_that_leave_leave_no_entry(server):
    for number in range(200):
        leave(server, number)
    assert until(lambda: not any(server.entries)), server.entries
    assert server.ok("/v1/completions", {"prompt": "a", "max_tokens": 2})


@pytest.mark.slow
def test_a_thousand_clients_take_no_memory(server):
    def megabytes() -> float:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    for number in range(200):
        leave(server, number)
    assert until(lambda: not any(server.entries), 60)
    before = megabytes()
    for number in range(1000):
        leave(server, number)
    assert until(lambda: not any(server.entries), 60)
    assert megabytes() - before < 20
