"""The command `python -m llm_jax.serve`: models behind the interface of OpenAI's API."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from llm_jax.core.arguments import Pairs, argument, part, passed_on, positional, read_command
from llm_jax.core.command import run_command
from llm_jax.core.errors import UserError, nearest
from llm_jax.core.files import user_path
from llm_jax.core.log import log_to_stderr
from llm_jax.pretrained.arguments import ModelArguments
from llm_jax.serve.security import is_loopback, new_token, token_of, write_token

NEEDS = ("starlette", "uvicorn", "prometheus_client")
"""The packages of the extra `serve`."""


@dataclass(frozen=True, kw_only=True)
class ServeCommand:
    """Serves models to OpenAI's clients: python -m llm_jax.serve RUN_OR_FOLDER [NAME=FOLDER ...] key=value ...

      python -m llm_jax.serve runs/quickstart/default port=8000
      python -m llm_jax.serve small=runs/quickstart/default large=runs/quickstart/larger slots=4
      python -m llm_jax.serve runs/quickstart/default socket=/tmp/me/serve.sock max_tokens=1024

    When all programs are compiled, it prints the address with its token, which clients give as API key. SIGTERM
    ends it when the running requests have ended (drain=), Ctrl-C at once. docs/serve.md has clients and limits.

    Exit codes: 0 ended by SIGTERM, 1 the engine failed (one line names it), 2 a mistake in the command line
    (one line names it), 130 Ctrl-C.
    """  # noqa: E501

    folder: Path | None = positional("RUN_OR_FOLDER", None)
    """A run folder or a Hugging Face model folder; requests choose it by the folder's name."""
    models: Pairs = passed_on(bool, "NAME=FOLDER")
    """Further models, and the names by which requests choose them."""
    port: int | None = argument(None, least=0, most=65535)
    """The port; 8000, if not given; 0: a free one."""
    socket: Path | None = argument(None, shown="PATH")
    """Listens at a Unix socket in place of a port, in a folder of mode 0700 (made if it isn't there)."""
    host: str = argument("127.0.0.1", shown="ADDRESS")
    """The address to listen at. One that other machines reach needs token=."""
    names: tuple[str, ...] = argument((), shown="NAME,NAME,...")
    """Further names of this machine that the Host header of requests may have, behind a proxy."""
    token: str | None = argument(None, shown="TEXT|@FILE", read=token_of)
    """What clients must give as API key, at least 16 characters; @FILE: the first line of a file (other users
    see a command line). A random one, if not given."""
    token_file: Path | None = argument(None, shown="FILE")
    """Where the token is written, readable by you only; if not given, beside the socket, or below
    $XDG_RUNTIME_DIR or ~/.cache."""
    slots: int = argument(8, least=1)
    """Continuations that run at once, for each model; others wait."""
    max_tokens: int | None = argument(None, least=2)
    """Most tokens of a prompt with its continuation: the caches of all slots have this size. If not given,
    the length that the model was trained on, at most 2,048."""
    queue: int | None = argument(None, least=0)
    """Continuations that wait, for each model, before requests are refused (429); 4 x slots, if not given."""
    timeout: float = argument(600.0, above=0, shown="SECONDS")
    """Seconds that a request may take, waiting included."""
    drain: float = argument(30.0, least=0, shown="SECONDS")
    """Seconds that running requests have to end after SIGTERM."""
    log_prompts: bool = False
    """Logs the texts of prompts and answers to stderr."""
    model: ModelArguments = part(ModelArguments)

    def check(self) -> None:
        """Raises UserError for what several keys make impossible."""
        if self.socket is not None and self.port is not None:
            raise UserError(
                f"socket={self.socket}: the server listens at a port or a socket. Leave port= out"
            )
        if not self.socket and not is_loopback(self.host) and self.token is None:
            raise UserError(
                f"host={self.host}: other machines reach it, and it needs a token of your own. Give "
                "token=@FILE, or leave host= out and use a tunnel (ssh -L)"
            )
        folders = self.folders()
        if len(folders) > 1 and (self.model.step is not None or self.model.adapter is not None):
            key = "adapter" if self.model.adapter is not None else "step"
            raise UserError(f"{key}={getattr(self.model, key)}: is for one model, and there are several")

    def folders(self) -> dict[str, Path]:
        """The folders of all models by name, in order. Raises UserError for two of one name."""
        named = [(name_of(self.folder), self.folder)] if self.folder is not None else []
        keys = [
            name for name in ServeCommand.__dataclass_fields__ if name not in ("folder", "models", "model")
        ]
        for name, text in self.models:
            path = user_path(text)
            if not text.startswith("hub:") and not path.exists():
                raise UserError(
                    f"{name}={text}: there is no key {name!r}, and no folder {text!r} to be served under "
                    f"this name; {nearest(name, keys)}"
                )
            named.append((name, path))
        found = dict(named)
        if not found:
            raise UserError("RUN_OR_FOLDER is missing: give a run folder or a Hugging Face model folder")
        if len(found) < len(named):
            names = [name for name, _ in named]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{twice}: two models have this name. Give one as NAME=FOLDER")
        return found

    def file_of_token(self, port: int) -> Path:
        """Where the token is written. port: of the server, 0 for a socket."""
        if self.token_file is not None:
            return user_path(self.token_file)
        if self.socket is not None:
            path = user_path(self.socket).absolute()
            return path.with_name(f"{path.name}.token")
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        base = Path(runtime) if runtime else Path.home() / ".cache"
        return base / "llm_jax" / "serve" / f"{port}.token"


def name_of(folder: Path) -> str:
    """The name of a model that is given without one.

    >>> name_of(Path("runs/quickstart/default")), name_of(Path("hub:ORG/NAME@main"))
    ('default', 'NAME')
    """
    text = str(folder)
    if text.startswith("hub:"):
        return re.split(r"[/:]", text.partition("@")[0])[-1]
    return user_path(folder).resolve().name.removesuffix(".gguf") or "model"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(serve, arguments)


def serve(arguments: list[str]) -> int:
    """Reads the command line and serves until a signal comes. Raises UserError."""
    command = read_command(arguments, ServeCommand)
    if command is None:
        return 0
    folders = command.folders()
    for folder in folders.values():
        check_folder(folder)
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"llm_jax.serve: needs {', '.join(missing)}: pip install 'llm_jax[serve]' (everything else works "
            "without it)"
        )

    from llm_jax.serve.models import open_models  # these import JAX, which `run_command` sets up
    from llm_jax.serve.server import Server, ServerOptions
    from llm_jax.serve.sockets import listen_at_path, listen_at_port

    options = command.model.options()
    listener = (
        listen_at_path(user_path(command.socket))
        if command.socket
        else listen_at_port(command.host, 8000 if command.port is None else command.port)
    )
    token, token_file = command.token or new_token(), command.file_of_token(listener.port)
    try:
        write_token(token_file, token)
        server = Server(
            lambda log: open_models(folders, options, command.slots, command.max_tokens, log),
            listener, token,
            ServerOptions(
                queue=command.queue, timeout=command.timeout, drain=command.drain,
                log_prompts=command.log_prompts, names=command.names,
            ),
            log_to_stderr,
        )  # fmt: skip

        def announce() -> None:
            fragment = f"/#token={token}" if command.token is None else ""
            where = f"{listener.url}{fragment}" + (f" at {listener.path}" if listener.path else "")
            print(f"serves {', '.join(folders)}: {where}", flush=True)
            print(f"clients: base_url {listener.url}/v1, the API key is in {token_file}", flush=True)
            print(f"from another machine: {listener.tunnel}", flush=True)

        code = asyncio.run(server.run(announce))
    finally:
        token_file.unlink(missing_ok=True)
        listener.close()
    if server.thread.thread.is_alive():  # it opens or compiles, and can't be stopped
        sys.stdout.flush()
        os._exit(code)
    return code


def check_folder(folder: Path) -> None:
    """Raises UserError where there is no such folder, before anything is listened at."""
    if not str(folder).startswith("hub:") and not folder.exists():
        raise UserError(
            f"{folder}: no such folder; give a run folder, or one with a config.json and safetensors"
        )


if __name__ == "__main__":
    sys.exit(main())
