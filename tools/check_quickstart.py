"""Runs a quickstart of 100 steps and compares its losses with those on record: python -m
tools.check_quickstart

The corpus is the standard library of the Python that runs it. Where it gives the recorded last batch, losses
must agree to 1e-3 (they are bit-identical on one kind of CPU); elsewhere the held-out loss must be below
BITS. `record=true` prints a new record. The whole quickstart, with its 1.8 bits per byte, is `make
quickstart`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from llm_jax.launch import main as launch

STEPS = 100
BITS = 2.6
"""Bits per byte after so few steps; a model that knows nothing has about 4.5."""
RECORD: dict[str, Any] = {
    "batch_sha": "89b42495875d5be96ee2a1e19b647340223ab071bfe9ef0397feb2e8e9e36754",  # Python 3.11.7
    "train_loss": 6.3368072509765625,
    "eval_loss": 6.077094460876287,
}
TOLERANCE = 1e-3


def main(arguments: list[str]) -> int:
    """The command; its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        code = launch(["experiment=quickstart", f"train.steps={STEPS}", f"run_dir={run_dir}"])
        if code:
            return code
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = {key: value for line in lines if line["step"] == STEPS for key, value in line.items()}
    if "record=true" in arguments:
        print({key: last[key] for key in RECORD})
        return 0
    wrong = (
        []
        if last["eval_bits_per_byte"] < BITS
        else [f"held-out bits per byte {last['eval_bits_per_byte']:.4f}: must be below {BITS}"]
    )
    known = last["batch_sha"] == RECORD["batch_sha"]
    for name in ("train_loss", "eval_loss") if known else ():
        if not abs(last[name] / float(RECORD[name]) - 1) < TOLERANCE:
            wrong.append(
                f"{name}={last[name]!r} after {STEPS} steps: {RECORD[name]!r} is on record "
                "(tools/check_quickstart.py)"
            )
    print(
        "\n".join(wrong)
        or f"quickstart: {STEPS} steps, losses "
        f"{'as on record' if known else 'plausible; another corpus than on record'}"
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
