"""A TCP connection between two processes of a run, which carries messages (`llm_jax.processes.messages`)."""

from __future__ import annotations

import socket

from llm_jax.processes.messages import Message, decode

SEND_SECONDS = 10.0
"""A process that reads nothing for so long, with its buffers full, counts as lost."""


class Connection:
    """One end of a connection. It raises no network errors: whatever breaks it sets `closed`."""

    def __init__(self, sock: socket.socket):
        sock.settimeout(SEND_SECONDS)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self.closed = False
        self.incomplete = b""
        """The beginning of a line whose end has not arrived."""
        self.unread: list[Message] = []
        """Messages that have arrived and that no method has returned yet."""

    def fileno(self) -> int:
        """The socket's file descriptor, which a selector needs."""
        return self.socket.fileno()

    def send(self, message: Message) -> None:
        """Sends a message, unless the connection is closed."""
        if self.closed:
            return
        try:
            self.socket.sendall(message.encode())
        except OSError:
            self.closed = True

    def receive(self) -> list[Message]:
        """All messages that have arrived. If none has, waits for data until the socket's time-out, and may
        return an empty list."""
        if not self.unread:
            self.read()
        messages, self.unread = self.unread, []
        return messages

    def receive_one(self) -> Message | None:
        """The next message; None when the connection closes or the socket's time-out passes before one
        arrives."""
        while not self.unread and not self.closed:
            self.read()
        return self.unread.pop(0) if self.unread else None

    def drain(self) -> list[Message]:
        """The messages that had arrived before the connection was closed. (A failed send closes it while
        messages may wait to be read.)"""
        self.socket.settimeout(0.01)
        known = -1
        while len(self.unread) > known:
            known = len(self.unread)
            self.read()
        return self.receive() if self.unread else []

    def read(self) -> None:
        """Appends what the socket has received to `unread`. Closes the connection if that is not a
        message."""
        try:
            data = self.socket.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return
        *lines, self.incomplete = (self.incomplete + data).split(b"\n")
        try:
            self.unread += [decode(line) for line in lines]
        except ValueError:  # another program
            self.closed = True

    def close(self) -> None:
        """Closes the socket."""
        self.closed = True
        self.socket.close()
