"""What all commands have in common."""

from __future__ import annotations

import subprocess
import sys

from llm_jax.core.console import UNREAD
from llm_jax.core.errors import EXIT_UNREAD

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
