"""The command `python -m llm_jax.inspect`: a page about what a model does with a text."""

from __future__ import annotations

import sys

from llm_jax.core.arguments import read_command
from llm_jax.core.command import run_command
from llm_jax.inspect.arguments import InspectArguments


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(inspect, arguments)


def inspect(arguments: list[str]) -> int:
    """Reads the command line, analyses the model and writes the page. Raises UserError."""
    command = read_command(arguments, InspectArguments)
    if command is None:
        return 0
    folder = command.page_folder()

    from llm_jax.inspect.analysis import analyse_model  # these import JAX, which `run_command` sets up
    from llm_jax.inspect.write import write_page
    from llm_jax.pretrained.model import open_model

    opened = open_model(command.folder, **command.model.options())
    found = analyse_model(opened, command)
    more = f" of {found.all_tokens:,}" if found.all_tokens > len(found.tokens) else ""
    print(f"{len(found.tokens):,} tokens{more}, mean loss {found.losses.mean():.3f} nats")
    print(f"written: {write_page(found, opened, command, folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
