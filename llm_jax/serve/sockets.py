"""Where the server listens: a port of this machine, or a Unix socket in a folder of its own."""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from llm_jax.core.errors import UserError
from llm_jax.serve.security import address_of

LONGEST_PATH = 107
"""Bytes of a Unix socket's path, by Linux."""
BACKLOG = 1024


@dataclass(frozen=True)
class Listener:
    """A bound socket, and how it is reached."""

    socket: socket.socket
    host: str
    """The address; "localhost" for a Unix socket."""
    path: Path | None = None
    """Of a Unix socket."""

    @property
    def port(self) -> int:
        """The port; 0 for a Unix socket."""
        return 0 if self.path else int(self.socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The base of all paths, without a slash at its end."""
        if self.path:
            return "http://localhost"
        host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def tunnel(self) -> str:
        """The command that makes it reachable on another machine."""
        target = str(self.path) if self.path else f"localhost:{self.port}"
        return f"ssh -L {self.port or 8000}:{target} {socket.gethostname()}"

    def close(self) -> None:
        """Closes the socket and removes its file."""
        self.socket.close()
        if self.path:
            self.path.unlink(missing_ok=True)


def listen_at_port(host: str, port: int) -> Listener:
    """Listens at a port; 0: one that is free. Raises UserError where that isn't possible."""
    address = address_of(host)
    family = socket.AF_INET6 if address is not None and address.version == 6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host.strip("[]"), port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port={port}: another process listens there. Choose another, or port=0 for a free one"
            ) from error
        if error.errno == errno.EACCES:
            raise UserError(f"port={port}: only root may listen below 1024. Choose another") from error
        raise UserError(
            f"host={host}: is no address of this machine ({error.strerror}). Give one, or leave it out"
        ) from error
    return Listener(made, host)


def listen_at_path(path: Path) -> Listener:
    """Listens at a Unix socket, which only its owner can reach: it makes the folder with mode 0700.

    Raises UserError for a folder that others can enter, and where another server listens there.
    """
    path = path.absolute()
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise UserError(
            f"socket={path}: has {len(os.fsencode(path))} bytes, and a socket's path at most {LONGEST_PATH}. "
            "Choose a shorter one, in $XDG_RUNTIME_DIR or /tmp/NAME"
        )
    make_private(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            remove_stale(path)
        before = os.umask(0o177)
        try:
            made.bind(str(path))
        finally:
            os.umask(before)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise UserError(f"socket={path}: can't be made ({error.strerror}). Choose another") from error
    except UserError:
        made.close()
        raise
    return Listener(made, "localhost", path)


def make_private(path: Path) -> None:
    """Makes the folder of a socket, mode 0700. Raises UserError for one that others can enter."""
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        problem = f"socket={path}: {folder} can't be made ({error.strerror}). Choose another"
        raise UserError(problem) from error
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise UserError(
            f"socket={path}: others can enter {folder} (mode {stat.S_IMODE(found.st_mode):04o}). Choose a "
            f"folder that isn't there yet, or chmod 700 {folder}"
        )


def remove_stale(path: Path) -> None:
    """Removes the socket that an ended server left. Raises UserError where one listens, and for other
    files."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise UserError(f"socket={path}: is a file. Choose a path that isn't there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
            return
    raise UserError(f"socket={path}: another process listens there. Choose another path")
