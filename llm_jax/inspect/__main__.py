"""Writes a page about what a model does with a text: python -m llm_jax.inspect RUN_OR_FOLDER text="HPC is all we"

  python -m llm_jax.inspect runs/quickstart/default text="def main():"
  python -m llm_jax.inspect runs/quickstart/default file=module.py tokens=200 diff=runs/quickstart/default@100
  python -m llm_jax.inspect MODEL text="HPC is all we" word=bank contexts="They rowed to the bank|She went to the bank"

RUN_OR_FOLDER     a run folder or a Hugging Face model folder
text=, file=      the text, or a file with it; or ids=1,2,3, its token ids. At most 1,024 tokens;
                  tokens=N takes the first N of a longer text
layers=0,5        attention maps of these layers only, which leaves room for more tokens; the rest is of all layers
word=, contexts=  follows the vector of a word through the layers in two texts, separated by |, that both contain it
                  (default: an example)
tokenizers=A,B    compares the model's tokenizer with others: run folders, SentencePiece models, tokenizer.json
diff=RUN          compares with another checkpoint of the same kind of model; diff=RUN@STEP with that of a step
step=N            the checkpoint of a step (default: the newest); layout=NAME, mesh.AXIS=N, dtype=NAME as elsewhere
out=FOLDER        where inspect.html (one file, readable without a network), figures/*.png and inspect.json go
                  (default: RUN_OR_FOLDER/inspect)

  --help          this text

docs/inspect.md walks through a page. Exit codes: 0 done, 2 a mistake in the command line (one line names it).
"""

from __future__ import annotations

import sys
from pathlib import Path

from llm_jax.core.command import output_folder, run_command


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(inspect, arguments)


def inspect(arguments: list[str]) -> int:
    """Reads the command line, analyses the model and writes the page. Raises UserError."""
    from llm_jax.inspect.arguments import KEYS, check_arguments
    from llm_jax.pretrained.arguments import read_asked

    line = read_asked(arguments, ("RUN_OR_FOLDER",), KEYS)
    if line is None:
        print(__doc__)
        return 0
    chosen = check_arguments(line)
    folder = output_folder("out", chosen.out or str(Path(chosen.path) / "inspect"))

    from llm_jax.inspect.analysis import analyse_model
    from llm_jax.inspect.write import write_page
    from llm_jax.pretrained.model import open_model

    opened = open_model(chosen.path, **chosen.opening)
    found = analyse_model(opened, chosen)
    more = f" of {found.all_tokens:,}" if found.all_tokens > len(found.tokens) else ""
    print(f"{len(found.tokens):,} tokens{more}, mean loss {found.losses.mean():.3f} nats")
    print(f"written: {write_page(found, opened, chosen, folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
