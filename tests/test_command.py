"""What all commands have in common."""

from __future__ import annotations

import subprocess
import sys

from llm_jax.errors import EXIT_UNREAD

ENDLESS = """
import sys
from llm_jax.command import run_command

def body(arguments):
    while True:
        print("a line", flush=True)

sys.exit(run_command(body, []))
"""


def test_a_command_whose_output_nobody_reads_any_more_ends_without_a_word():
    """As in `python -m llm_jax.generate ... | head`."""
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"a line\n"
        process.stdout.close()
        assert process.wait(60) == EXIT_UNREAD
        assert process.stderr.read() == b""
