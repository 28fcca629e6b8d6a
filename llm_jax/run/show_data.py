"""The command `python -m llm_jax.data.show`: what a run is trained on, token by token."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from llm_jax.core.arguments import Pairs, argument, passed_on, read_command
from llm_jax.core.command import output_file, run_command
from llm_jax.core.log import log_to_stderr


@dataclass(frozen=True, kw_only=True)
class ShowDataCommand:
    """Shows what a run is trained on, token by token: python -m llm_jax.data.show experiment=NAME key=value ...

      python -m llm_jax.data.show experiment=sft
      python -m llm_jax.data.show experiment=sft from=models/SmolLM2-135M-Instruct data.source=chats.jsonl html=page.html
      python -m llm_jax.data.show experiment=quickstart examples=1

    Trained tokens are coloured (in a file they stand in brackets, ⟦ ⟧). What was left out is listed with its
    reason, its count, and the file and line of the first.

    Exit codes: 0 done, 2 a mistake in the command line or the data (one line names it).
    """  # noqa: E501

    experiment: Pairs = passed_on(lambda name: True, "experiment=NAME")
    """The experiment, as in llm_jax.launch; so are from=FOLDER and all overrides: data.source=chats.jsonl,
    data.train_on=last_turn."""
    examples: int = argument(3, least=1)
    """Documents of each source that are shown, from its first one on."""
    html: Path | None = argument(
        None, shown="FILE.html", read=functools.partial(output_file, endings=(".html",))
    )
    """Writes them as a page too."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(show, arguments)


def show(arguments: list[str]) -> int:
    """Reads the command line, prepares the corpus as a run does, and prints examples. Raises UserError."""
    command = read_command(arguments, ShowDataCommand)
    if command is None:
        return 0

    from llm_jax import data  # these import JAX, which `run_command` sets up
    from llm_jax.data.shown_examples import print_examples, shown_examples, write_page
    from llm_jax.run.initial_weights import experiment_from_pairs
    from llm_jax.run.prepare import corpus_settings

    experiment = experiment_from_pairs(list(command.experiment))
    documents, tokenizer, more = corpus_settings(experiment)
    corpus = data.prepare(documents, tokenizer, run_dir=None, log=log_to_stderr, **more)
    encoder, held_out = more.get("encoder"), corpus.is_held_out
    examples = [
        example
        for source in corpus.sources
        for example in shown_examples(source, encoder, corpus.tokenizer, held_out, command.examples)
    ]
    notes = [
        f"{count:,} left out: {reason}; the first is {where}" for reason, count, where in corpus.left_out()
    ]
    notes = notes or ["Nothing is left out."]
    print_examples(examples)
    print("", *notes, sep="\n")
    if command.html:
        write_page(command.html, f"What {experiment.name} is trained on", notes, examples)
        print(f"written: {command.html}")
    return 0
