"""Who may use the server: tokens, and the Host and Origin of requests. Other users of a node reach its
loopback too, and web pages reach the loopback of whoever reads them."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from llm_jax.core.errors import UserError, require
from llm_jax.core.files import user_path
from llm_jax.serve.errors import ApiError

OPEN = ("/health",)
"""Paths without a token."""
SHORTEST_TOKEN = 16
LOCAL = ("localhost",)
"""Names of the loopback."""


def token_of(key: str, value: str) -> str:
    """The token of token=TEXT, or of token=@FILE: its first line. Raises UserError for one that is short, or
    that no header can carry."""
    if value.startswith("@"):
        path = user_path(value[1:])
        try:
            text = (path.read_text().splitlines() or [""])[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{key}={value}: can't be read ({error})") from error
    else:
        text = value
    shown = value if value.startswith("@") else "..."
    require(
        bool(re.fullmatch(rf"[!-~]{{{SHORTEST_TOKEN},}}", text)), key, shown,
        f"at least {SHORTEST_TOKEN} letters, digits or signs of ASCII, without spaces",
    )  # fmt: skip
    return text


def new_token() -> str:
    """A random token of 256 bits."""
    return secrets.token_urlsafe(32)


def write_token(path: Path, token: str) -> None:
    """Writes a token to a file that only its owner reads (mode 0600). Raises UserError where it can't be
    written."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token + "\n")
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"token_file={path}: can't be written ({error.strerror}). Give another") from error


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "node3")]
    [True, True, True, False, False]
    """
    address = address_of(host)
    return host in LOCAL if address is None else address.is_loopback


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host is written as; None for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


class Guard:
    """Decides whether a request may pass."""

    def __init__(self, token: str, host: str, names: tuple[str, ...] = ()):
        """host: the address that the server listens at; a loopback one for a Unix socket. names: further
        names by which clients know this machine."""
        self.token = token.encode()
        self.loopback = is_loopback(host)
        own = () if self.loopback else (host, socket.gethostname(), socket.getfqdn())
        self.names = {name.lower().rstrip(".") for name in (*LOCAL, *own, *names)}

    def check(self, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Raises ApiError for a foreign Host or Origin, and for a missing or wrong token."""
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self.is_own(hosts[0]):
            raise ApiError(
                403, "The Host header names another machine. Reach the server as localhost, or start it with "
                "names=NAME.", code="host_not_allowed",
            )  # fmt: skip
        for name, value in headers:
            if name == b"origin" and not same_origin(value.decode("latin-1"), hosts[0]):
                raise ApiError(
                    403, "The request comes from a page of another origin.", code="origin_not_allowed"
                )
        if path not in OPEN:
            self.check_token([value for name, value in headers if name == b"authorization"])

    def check_token(self, given: list[bytes]) -> None:
        """Raises ApiError (401) unless exactly one Authorization header has the token. Takes the same time
        for every wrong one."""
        kind, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        right = hmac.compare_digest(token.strip(), self.token)
        if kind.lower() != b"bearer" or not right:
            problem = "Incorrect" if given else "Missing"
            raise ApiError(
                401, f"{problem} token. Give it as the API key (Authorization: Bearer TOKEN); the server "
                "printed it, and the file that holds it, at its start.", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this machine. Addresses can't be rebound as names can; a server of the
        loopback takes only its addresses."""
        name = host_name(host)
        if (address := address_of(name)) is not None:
            return address.is_loopback or not self.loopback
        return name.rstrip(".") in self.names


def host_name(host: str) -> str:
    """The host of "host:port", in lower case; empty for what is none.

    >>> [host_name(host) for host in ("LOCALHOST:8000", "[::1]:80", "a b", "evil@localhost")]
    ['localhost', '::1', '', '']
    """
    if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", host):
        return ""
    return (urlsplit(f"//{host}").hostname or "").lower()


def same_origin(origin: str, host: str) -> bool:
    """Whether an Origin header is that of a page of this server, whose Host header is `host`.

    >>> [same_origin(o, "localhost:8000") for o in ("http://localhost:8000", "http://localhost", "null")]
    [True, False, False]
    """
    return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


SAFE_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
}
"""On every response."""
