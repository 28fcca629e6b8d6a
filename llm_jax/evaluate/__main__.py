"""Held-out loss, perplexity and bits per byte of a model: python -m llm_jax.evaluate RUN_OR_FOLDER [data.source=...]

  python -m llm_jax.evaluate runs/quickstart/default
  python -m llm_jax.evaluate runs/quickstart/default data.source=german.jsonl tokens=100000
  python -m llm_jax.evaluate runs/quickstart/default layout=fsdp_tensor mesh.tensor=2 dtype=bfloat16 step=500 out=scores.json

RUN_OR_FOLDER     a run folder, or a folder with a model of Hugging Face's
data.KEY=VALUE    the corpus, as for a run: its held-out documents are what counts (data.held_out_fraction=0.99 makes that nearly all of a text).
                  If none is given, the run's own: then the loss is that of its summary.json
train.KEY=VALUE   batch_size and sequence_length: the run's, if not given. Longer sequences give each token more of its document
tokens=N          at most so many tokens, rounded up to whole batches; or batches=N
step=N            the checkpoint of a step, not the newest
layout=NAME       and mesh.AXIS=N: where the model lives (one device, if not given); dtype=bfloat16 or float32
out=FILE.json     the figures go there too

  --help          this text

Exit codes: 0 done, 2 a mistake in what was asked (one line says which).
"""

from __future__ import annotations

import dataclasses
import sys

from llm_jax.core.command import output_file, run_command
from llm_jax.core.errors import UserError

OF_THE_RUN = ("train.batch_size", "train.sequence_length")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(evaluate, arguments)


def evaluate(arguments: list[str]) -> int:
    """The same, with UserErrors raised."""
    from llm_jax.pretrained.arguments import read_asked

    of_the_run = lambda key: key.startswith("data.") or key in OF_THE_RUN  # noqa: E731
    asked = read_asked(arguments, ("RUN_OR_FOLDER",), ("tokens", "batches", "out"), others=of_the_run)
    if asked is None:
        print(__doc__)
        return 0
    own = asked.values
    out = output_file("out", own["out"], (".json",)) if "out" in own else None
    if "tokens" in own and "batches" in own:
        raise UserError(f"tokens={own['tokens']}: batches={own['batches']} says that too; give one of them")
    tokens, batches = asked.whole("tokens", 1), asked.whole("batches", 1)

    from llm_jax.core.files import write_json
    from llm_jax.evaluate.held_out import score, table

    scores = score(asked.paths[0], asked.pairs, tokens=tokens, batches=batches, **asked.opening)
    print(table(scores))
    if out:
        write_json(out, dataclasses.asdict(scores))
        print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
