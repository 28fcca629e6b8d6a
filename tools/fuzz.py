"""Searches for inputs that break a promise of tests/fuzz, for as long as one wants.

  python -m tools.fuzz minutes=60
  python -m tools.fuzz minutes=5 tests=test_readers.py examples=500

Each round runs every file with another seed. It ends at the first failure, whose input pytest prints (to be kept as an
@example), with exit code 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from llm_jax.core.arguments import argument, read_command
from llm_jax.core.command import run_command

FOLDER = Path(__file__).parent.parent / "tests" / "fuzz"


@dataclass(frozen=True, kw_only=True)
class FuzzCommand:
    """Runs tests/fuzz with new inputs again and again: python -m tools.fuzz minutes=60

    Exit codes: 0 nothing found, 1 an input that breaks a promise (pytest prints it).
    """

    minutes: float = argument(60.0, above=0)
    """For how long; a round that has begun is finished."""
    tests: str = "*.py"
    """Which files of tests/fuzz."""
    examples: int = argument(1000, least=1)
    """Inputs for each test in a round."""
    seed: int = argument(1, least=0)
    """The first round's."""


def fuzz(arguments: list[str]) -> int:
    """Runs rounds until the time is over or an input is found."""
    command = read_command(arguments, FuzzCommand)
    if command is None:
        return 0
    end, seed = time.monotonic() + 60 * command.minutes, command.seed
    files = [str(path) for path in sorted(FOLDER.glob(command.tests)) if path.name.startswith("test_")]
    while time.monotonic() < end:
        line = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            f"--hypothesis-seed={seed}",
            *files,
        ]
        environment = {**os.environ, "LLM_JAX_FUZZ_EXAMPLES": str(command.examples)}
        begun = time.monotonic()
        code = subprocess.run(line, env=environment, check=False).returncode
        print(
            f"seed {seed}: {'nothing found' if code == 0 else f'exit code {code}'} in {time.monotonic() - begun:.0f} s",
            flush=True,
        )
        if code:
            return 1
        seed += 1
    return 0


if __name__ == "__main__":
    sys.exit(run_command(fuzz))
