"""Messages between two processes: a JSON object a line over a socket."""

from __future__ import annotations

import json
import socket
from typing import Any

Message = dict[str, Any]
SEND_SECONDS = 10.0
"""A process that takes nothing for so long, with its buffers full, is as good as gone."""


class Link:
    """One end of a connection. Whatever breaks it only shows as `closed`."""

    def __init__(self, connection: socket.socket):
        connection.settimeout(SEND_SECONDS)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.closed = False
        self.part = b""
        self.waiting: list[Message] = []
        """Received and not yet returned."""

    def fileno(self) -> int:
        """For a selector."""
        return self.connection.fileno()

    def send(self, message: Message) -> None:
        """Sends a message, if the other end is there."""
        if self.closed:
            return
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.closed = True

    def receive(self) -> list[Message]:
        """What has come: waits for something if nothing has, at most until the connection's time-out."""
        if not self.waiting:
            self.read()
        messages, self.waiting = self.waiting, []
        return messages

    def next(self) -> Message | None:
        """The next message; None where none comes."""
        while not self.waiting and not self.closed:
            self.read()
        return self.waiting.pop(0) if self.waiting else None

    def rest(self) -> list[Message]:
        """What had come before it was closed: a send that failed says nothing of words that wait to be read."""
        self.connection.settimeout(0.01)
        known = -1
        while len(self.waiting) > known:
            known = len(self.waiting)
            self.read()
        return self.receive() if self.waiting else []

    def read(self) -> None:
        """Reads what has come into `waiting`."""
        try:
            data = self.connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return
        *lines, self.part = (self.part + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:  # something else listens there, or asks here
            messages = [None]
        if not all(isinstance(message, dict) for message in messages):
            self.closed = True
            return
        self.waiting += messages

    def close(self) -> None:
        """Ends the connection."""
        self.closed = True
        self.connection.close()
