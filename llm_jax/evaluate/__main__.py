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
from pathlib import Path

from llm_jax.command import output_file, read_arguments, run_command
from llm_jax.errors import UserError, nearest, require

OWN = ("tokens", "batches", "step", "layout", "dtype", "out")
OF_THE_RUN = ("train.batch_size", "train.sequence_length")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(evaluate, arguments)


def evaluate(arguments: list[str]) -> int:
    """The same, with UserErrors raised."""
    paths = [a for a in arguments if not a.startswith("-") and "=" not in a]
    flags, pairs = read_arguments([a for a in arguments if a not in paths], ("--help", "-h"))
    if not arguments or flags:
        print(__doc__)
        return 0
    if len(paths) != 1:
        raise UserError(f"{' '.join(paths)}: are {len(paths)} folders; must be one" if paths else "RUN_OR_FOLDER is missing: the model to evaluate")
    own, mesh, changes = read_keys(pairs)
    out = output_file("out", own["out"], (".json",)) if "out" in own else None
    if "tokens" in own and "batches" in own:
        raise UserError(f"tokens={own['tokens']}: batches={own['batches']} says that too; give one of them")
    numbers = {key: whole_number(key, own[key], least) for key, least in (("tokens", 1), ("batches", 1), ("step", 0)) if key in own}

    from llm_jax.evaluate.held_out import score, table
    from llm_jax.layout.presets import preset
    from llm_jax.train.metrics import write_json

    scores = score(
        Path(paths[0]),
        changes,
        layout=preset(own["layout"]) if "layout" in own else None,
        mesh=mesh or None,
        dtype=own.get("dtype"),
        **numbers,
    )
    print(table(scores))
    if out:
        write_json(out, dataclasses.asdict(scores))
        print(f"written: {out}")
    return 0


def read_keys(pairs: list[tuple[str, str]]) -> tuple[dict[str, str], dict[str, int], list[tuple[str, str]]]:
    """(the command's own keys, sizes of mesh axes, what is said of the corpus). Raises UserError for other keys."""
    own: dict[str, str] = {}
    mesh: dict[str, int] = {}
    changes = []
    for key, value in pairs:
        if key.startswith("mesh."):
            mesh[key.removeprefix("mesh.")] = whole_number(key, value, -1)
        elif key.startswith("data.") or key in OF_THE_RUN:
            changes.append((key, value))
        elif key not in OWN:
            raise UserError(f"{key}={value}: there is no key {key!r} here; {nearest(key, (*OWN, *OF_THE_RUN, 'data.source', 'mesh.AXIS'))}")
        elif key in own:
            raise UserError(f"{key}= is given twice")
        else:
            own[key] = value
    return own, mesh, changes


def whole_number(key: str, value: str, least: int) -> int:
    """Raises UserError for anything else."""
    require(value.removeprefix("-").isdigit() and int(value) >= least, key, value, f"a whole number, at least {least}")
    return int(value)


if __name__ == "__main__":
    sys.exit(main())
