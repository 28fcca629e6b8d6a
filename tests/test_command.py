"""What all commands have in common."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llm_jax.core.console import UNREAD
from llm_jax.core.errors import EXIT_UNREAD, EXIT_USER_ERROR

ENDLESS = """
import sys
from llm_jax.core.command import run_command

def body(arguments):
    while True:
        print("a line", flush=True)

sys.exit(run_command(body, []))
"""


def test_a_command_whose_output_nobody_reads_any_more_ends_without_a_word():
    """As in `python -m llm_jax.generate ... | head`."""
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"a line\n"
        process.stdout.close()
        assert process.wait(60) == EXIT_UNREAD
        assert process.stderr.read() == b""


LINES = """
import sys
from pathlib import Path
from llm_jax.core.console import Console

console = Console()
console.log_to(Path(sys.argv[1]))
console.log("the first")
sys.stdin.readline()  # until nobody reads
for i in range(3):
    console.log(f"line {i}")
console.close()
"""


def test_a_run_goes_on_when_nobody_reads_its_output_any_more(tmp_path):
    """As in `python -m llm_jax.launch ... | head`: it may have cost hours, and its log has all."""
    command = [sys.executable, "-c", LINES, str(tmp_path / "log.txt")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"the first\n"
        process.stdout.close()
        process.stdin.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
    said = [line.split(" ", 1)[1] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert said == ["the first", "line 0", UNREAD, "line 1", "line 2"]


def said_with(variables: dict[str, str], body: str) -> subprocess.CompletedProcess[str]:
    """A command with this body, a lambda, in a process with these environment variables."""
    program = f"import sys; from llm_jax.core.command import run_command; sys.exit(run_command({body}, []))"
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("platforms", ["CPU", "rocm", "cpu,nonsense"])
@pytest.mark.parametrize("use", ["default_backend()", "numpy.zeros(2)", "device_count()"])
def test_a_platform_that_is_not_here_is_one_line(platforms, use):
    said = said_with({"JAX_PLATFORMS": platforms}, f"lambda a: print(__import__('jax.numpy').{use})")
    assert said.returncode == EXIT_USER_ERROR
    assert said.stderr.startswith(f"error: JAX_PLATFORMS={platforms}: JAX finds no such device here")
    assert said.stderr.count("\n") == 1


def test_other_errors_stay_tracebacks():
    said = said_with({"JAX_PLATFORMS": "cpu"}, "lambda a: (_ for _ in ()).throw(RuntimeError('a bug'))")
    assert said.returncode == 1
    assert "Traceback" in said.stderr


def test_figures_need_no_backend_of_a_notebook():
    """Jupyter gives it to `!python -m llm_jax.launch`, whose environment may lack it."""
    variables = {"MPLBACKEND": "module://a_notebook.inline"}
    said = said_with(variables, "lambda a: __import__('matplotlib').get_backend() and 0")
    assert said.returncode == 0, said.stderr
