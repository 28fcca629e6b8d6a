"""A look inside a model: python -m llm_jax.inspect RUN_OR_FOLDER text="HPC is all we"

  python -m llm_jax.inspect runs/quickstart/default text="def main():"
  python -m llm_jax.inspect runs/quickstart/default file=module.py tokens=200 diff=runs/quickstart/default@100
  python -m llm_jax.inspect MODEL text="HPC is all we" word=bank contexts="They rowed to the bank|She went to the bank"

RUN_OR_FOLDER     a run folder, or a folder with a model of Hugging Face's
text=, file=      the text to look at; or ids=1,2,3, its tokens. Of at most 1,024 tokens; tokens=N takes the first N of a longer one
layers=0,5        shows attention maps of these layers only, and so of more tokens; all that is computed is of all layers
word=, contexts=  follows a word through the layers in two texts, with a | between them; both must have it (an example, if not given)
tokenizers=A,B    compares the model's tokenizer with others: run folders, SentencePiece models, tokenizer.json
diff=RUN          compares with another checkpoint of the same kind of model; diff=RUN@STEP with that of a step
step=N            looks at the checkpoint of a step, not the newest; layout=NAME, mesh.AXIS=N, dtype=NAME as for other commands
out=FOLDER        where inspect.html (one file, readable without a network), figures/*.png and inspect.json go; RUN_OR_FOLDER/inspect if not given

  --help          this text

docs/inspect.md walks through a page. Exit codes: 0 done, 2 a mistake in what was asked (one line says which).
"""

from __future__ import annotations

import sys
from pathlib import Path

from llm_jax.core.command import output_folder, run_command


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(inspect, arguments)


def inspect(arguments: list[str]) -> int:
    """The same, with UserErrors raised."""
    from llm_jax.inspect.arguments import KEYS, checked
    from llm_jax.pretrained.arguments import read_asked

    line = read_asked(arguments, ("RUN_OR_FOLDER",), KEYS)
    if line is None:
        print(__doc__)
        return 0
    asked = checked(line)
    folder = output_folder("out", asked.out or str(Path(asked.path) / "inspect"))

    from llm_jax.inspect.analysis import find
    from llm_jax.inspect.write import write_page
    from llm_jax.pretrained.model import open_model

    opened = open_model(asked.path, **asked.opening)
    found = find(opened, asked)
    more = f" of {found.all_tokens:,}" if found.all_tokens > len(found.parts) else ""
    print(f"{len(found.parts):,} tokens{more}, mean loss {found.losses.mean():.3f} nats")
    print(f"written: {write_page(found, opened, asked, folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
