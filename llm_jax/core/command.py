"""Running a command, and the files that its keys name. Every `python -m llm_jax.COMMAND` uses it."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_jax.core.errors import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_UNREAD,
    EXIT_USER_ERROR,
    Fault,
    Stopped,
    UserError,
    require,
)
from llm_jax.core.files import check_writable, text_of, user_path
from llm_jax.core.xla_flags import enough_threads, expect_no_gpu, platform_problem

PICTURES = (".png", ".pdf", ".svg")
"""File types of figures."""


def run_command(body: Callable[[list[str]], int], arguments: list[str] | None = None) -> int:
    """Runs a command on its arguments (None: those of the process) and returns its exit code.

    A UserError is one line on stderr and exit code 2, a Fault one and 1. Every other exception is a bug, and
    stays a traceback.
    """
    before_jax()
    try:
        code = body(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not nobody_reads():
            raise
        return EXIT_UNREAD
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {str(error.filename)[:60]}...: {error.strerror}", file=sys.stderr)
        return EXIT_USER_ERROR
    except (RuntimeError, AssertionError) as error:
        if not (problem := platform_problem(error)):
            raise
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Fault as fault:
        print(f"error: {fault}", file=sys.stderr)
        return EXIT_FAULT
    except Stopped as stopped:
        print(stopped.early)
        return stopped.code
    except KeyboardInterrupt:  # a run handles signals itself: this is before it, or a second Ctrl-C
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def nobody_reads() -> bool:
    """Whether the reader of stdout has ended, as `head` does when it has its lines. If so, stdout is
    redirected to /dev/null."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    gone = bool(poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def before_jax() -> None:
    """Sets the environment for JAX, before it is imported: quiet libraries (unless the user set otherwise)
    and XLA's flags. Figures are files: the MPLBACKEND that a notebook gives to its commands may be missing
    here."""
    os.environ["MPLBACKEND"] = "agg"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    enough_threads()
    expect_no_gpu()


def input_text(key: str, value: str) -> str:
    """The text of the file that key=value names. Raises UserError if it can't be read, or is no UTF-8. A byte
    order mark before it is no text."""
    path = user_path(value)
    if not path.exists() or path.is_dir():  # a pipe is read: prompts=<(head -5 all.txt)
        raise UserError(f"{key}={value}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        return text_of(path.read_bytes(), f"{key}={value}")
    except OSError as error:
        raise UserError(f"{key}={value}: can't be read ({error.strerror})") from error


def output_file(key: str, value: str, endings: Sequence[str] = ()) -> Path:
    """The file that key=value names. Raises UserError if it can't be written. Makes nothing: it is a check
    before any computing."""
    path = user_path(value)
    require(bool(value), key, value, "a file")
    if path.is_dir():
        raise UserError(f"{key}={value}: is a folder; must be a file")
    require(not endings or path.suffix in endings, key, value, f"a file that ends in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise UserError(f"{key}={value}: there is no folder {path.parent}")
    require(
        os.access(path if path.exists() else path.parent, os.W_OK), key, value, "a file that can be written"
    )
    return path


def output_folder(key: str, value: str) -> Path:
    """The folder that key=value names, which need not exist. Raises UserError if it can't be made or written
    to."""
    require(bool(value), key, value, "a folder")
    check_writable(folder := user_path(value), key)
    return folder
