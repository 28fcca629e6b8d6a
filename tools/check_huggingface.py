"""Compares models of random shapes with transformers, in both directions.

`python -m tools.check_huggingface [family ...] [seeds=10] [first=0] [keep=FOLDER]`

For each model transformers writes a folder (in one of two spellings, a dtype, one file or several, some with
keys left out). Loaded here, the model must compute the same logits; saved from here, it must load in
transformers and compute the same logits, and load here with the same bits. For a model that is refused, the
reason is printed. Needs the extra `reference`. Exit code 1 if anything differs.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import pretrained
from llm_jax.core.errors import UserError
from llm_jax.pretrained.model import open_model
from tools import huggingface_reference as reference
from tools.huggingface_cases import Case, random_case

TOLERANCE = 1e-4
LENGTH = 40


def check(case: Case, seed: int, folder: Path) -> str:
    """The result in one line that begins with "same", "refused", "skipped" or "DIFFERS"."""
    theirs = reference.build(case, seed)
    reference.write(theirs, case, folder / "theirs", seed)
    tokens_BT = (
        np.random.default_rng(seed).integers(4, theirs.config.vocab_size, (2, LENGTH)).astype(np.int32)
    )
    positions_BT = np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1))
    expected = reference.logits(theirs, tokens_BT)
    exact = reference.logits(theirs.double(), tokens_BT)
    rounding = float(np.abs(exact - expected).max())  # of transformers itself in float32, against float64
    if rounding > TOLERANCE * 10:
        return f"skipped: an expert is chosen by a hair ({rounding:.1e})"
    tolerance = max(TOLERANCE, 4 * rounding)
    configs = {}
    for spelling in ("config.other.json", "config.json"):
        shutil.copytree(folder / "theirs", folder / spelling)
        shutil.copy(folder / "theirs" / spelling, folder / spelling / "config.json")
        try:
            loaded = open_model(folder / spelling, dtype="float32")
        except UserError as error:
            return f"refused: {error}"
        configs[spelling] = loaded.config
    if len(set(configs.values())) > 1:
        return f"DIFFERS: the two spellings are two models: {configs}"
    model = pretrained.load_model(folder / "theirs", dtype="float32")
    ours = np.asarray(
        jax.jit(lambda t, p: model(t, positions=p))(jnp.asarray(tokens_BT), jnp.asarray(positions_BT))
    )
    if (worst := np.abs(ours - exact).max()) > tolerance:
        return f"DIFFERS: logits by {worst:.1e}"
    pretrained.save_model(loaded, folder / "saved", log=lambda line: None)
    again = reference.logits(reference.read(folder / "saved"), tokens_BT)
    if (back := np.abs(again - exact).max()) > tolerance:
        return f"DIFFERS: logits of the saved model by {back:.1e}"
    reloaded = pretrained.load_model(folder / "saved", dtype="float32")
    if reloaded.config != loaded.config:
        return f"DIFFERS: the model changes when it is saved and loaded: {loaded.config} {reloaded.config}"
    return f"same: {worst:.1e}, saved {back:.1e} (theirs {rounding:.1e}), of {exact.std():.1f}"


def main() -> None:
    """Runs the checks of a command line."""
    families = [word for word in sys.argv[1:] if "=" not in word] or list(reference.FAMILIES)
    settings = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    first, bad = int(settings.get("first", 0)), 0
    for family in families:
        for seed in range(first, first + int(settings.get("seeds", 10))):
            case = random_case(family, seed)
            with tempfile.TemporaryDirectory() as temporary:
                found = check(case, seed, Path(temporary))
                if found.startswith("DIFFERS"):
                    bad += 1
                    found += f"\n  {case}"
                    if keep := settings.get("keep"):
                        shutil.copytree(temporary, Path(keep) / f"{family}-{seed}", dirs_exist_ok=True)
            print(f"{family} {seed}: {found}", flush=True)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
