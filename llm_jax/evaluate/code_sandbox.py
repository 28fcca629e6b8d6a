"""Runs a program that a model wrote, restricted: whether it ends well is whether its tests passed.

Each program is a process of its own (`python -I`) in a session, an environment without variables and an empty
folder of its own, with limits on time, memory, files, their size and processes. Where the system lets a user
make namespaces (`unshare`) it has no network, and all that it started ends with it. Root's programs run as
nobody, for whom limits and permissions hold. That stops accidents, such as endless loops, full disks and
downloads. It is no wall against a program that means harm, or cheats: files that the user may read or write
it may too, and it runs in one process with its tests. So nothing is run unless `execute=true` asks for it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, NamedTuple

SECONDS = 10.0
"""Of the clock, for one program."""
MEMORY = 1 << 30
"""Bytes of address space."""
FILE_BYTES = 1 << 20
OPEN_FILES = 32
NOBODY = 65534
"""The user that root's programs run as; it may read what root may, such as the modules of this Python."""

# The limits are set by the child: a function between fork and exec may hang in a process with JAX's threads.
# The word on stdin is printed after the program has run to its end, so one that exits early is not right.
START = f"""\
import io, os, resource, sys
word, seconds = sys.stdin.readline(), int(sys.argv[1])
if os.getpid() == 1:  # the first process of a namespace, which ignores signals
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
for name, limit in (
    ("CPU", seconds), ("AS", {MEMORY}), ("FSIZE", {FILE_BYTES}), ("NOFILE", {OPEN_FILES}), ("NPROC", 0),
    ("CORE", 0),
):
    number = getattr(resource, "RLIMIT_" + name, None)
    if number is not None:
        most = resource.getrlimit(number)[1]
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(number, (limit, limit))
program, out = sys.stdin.read(), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
sys.stdout, sys.stdin, sys.argv = io.StringIO(), io.StringIO(), ["program.py"]
exec(compile(program, "program.py", "exec"), {{"__name__": "__main__"}})
out.write(word)
out.flush()
"""


class Outcome(NamedTuple):
    """How a program ended."""

    passed: bool
    problem: str
    """Why it didn't pass: the last line of its error, or that it took too long; empty if it did."""


def run_programs(programs: Sequence[str], seconds: float = SECONDS) -> list[Outcome]:
    """How each program ended, in order; as many run at once as this process may use cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "program") as pool:
        return list(pool.map(lambda program: run_program(program, seconds), programs))


def run_program(program: str, seconds: float = SECONDS) -> Outcome:
    """Runs a program to its end, or for so many seconds.

    >>> run_program("assert 1 + 1 == 3, 'no'")
    Outcome(passed=False, problem='AssertionError: no')
    """
    word = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="llm_jax_program_") as folder,
        tempfile.TemporaryFile() as out,  # files, since a pipe would have to be read without end
        tempfile.TemporaryFile() as errors,
    ):
        if as_nobody():
            os.chown(folder, NOBODY, NOBODY)
        process = subprocess.Popen(
            [*apart(), *as_nobody(), sys.executable, "-I", "-B", "-c", START, str(int(seconds) + 1)],
            stdin=subprocess.PIPE, stdout=out, stderr=errors,
            cwd=folder, env={}, start_new_session=True,
        )  # fmt: skip
        try:
            process.communicate(f"{word}\n{program}".encode("utf-8", "replace"), seconds)
        except subprocess.TimeoutExpired:
            kill(process)
            process.wait()
            return Outcome(False, f"took more than {seconds:g} s")
        finally:
            kill(process)
        printed, problem = (read_end(file) for file in (out, errors))
    if process.returncode == 0 and printed.strip() == word:
        return Outcome(True, "")
    lines = problem.strip().splitlines()
    code = process.returncode if process.returncode <= 128 else 128 - process.returncode
    if code < 0 and not lines:
        return Outcome(False, f"killed by {signal.Signals(-code).name}")
    return Outcome(False, lines[-1][:200] if lines else "ended before its tests did")


def read_end(file: IO[bytes], most: int = 10_000) -> str:
    """The last characters of a file."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - most))
    return file.read().decode(errors="replace")


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a program and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@functools.cache
def apart() -> tuple[str, ...]:
    """The words before a command that cut it off from the network, and let all that it starts end with it;
    none where the system doesn't allow that."""
    unshare = shutil.which("unshare")
    for flags in ("-npf", "-rnpf"):  # root may; others become root of a namespace of their own first
        words = (unshare or "", flags, "--kill-child")
        if unshare and subprocess.run([*words, "true"], capture_output=True).returncode == 0:
            return words
    return ()


@functools.cache
def as_nobody() -> tuple[str, ...]:
    """The words before a command of root's that run it as `NOBODY`; none for other users, and where the
    system doesn't allow it."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or not setpriv:
        return ()
    words = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    words += [f"--{kind}=-all,+dac_read_search" for kind in ("bounding-set", "inh-caps", "ambient-caps")]
    works = subprocess.run([*words, sys.executable, "-I", "-c", "import json"], capture_output=True)
    return () if works.returncode else tuple(words)


def sandbox_line() -> str:
    """How programs are run, for a line of the log."""
    network = "cut off" if apart() else "NOT cut off, since this system allows no `unshare -n`"
    if as_nobody():
        user = "as nobody"
    elif os.geteuid() == 0:
        user = "as ROOT, since `setpriv` doesn't work here"
    else:
        user = "with your permissions to read and write files"
    return (
        f"code of the model is run: a process each, {SECONDS:g} s, {MEMORY >> 20} MiB, {user}; the network "
        f"is {network}"
    )
