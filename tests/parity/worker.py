"""One of several processes of a small run: python -m tests.parity.worker ADDRESS COUNT RANK, with layouts as
JSON on stdin.

Prints {name: [metrics of every step]} as the last line of rank 0.
"""

from __future__ import annotations

import json
import sys

import jax

from llm_jax.layout.layout import Layout
from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import PipelineConfig
from tests.training import train


def main(address: str, count: int, rank: int) -> None:
    """Trains under every layout on the devices of all processes together."""
    asked = json.load(sys.stdin)
    jax.distributed.initialize(address, count, rank, initialization_timeout=60)
    assert jax.process_count() == count
    found = {}
    for name, tables in asked["layouts"].items():
        tables["pipeline"] = PipelineConfig(**tables["pipeline"])
        found[name] = train(
            Layout(name, **tables), {}, steps=asked["steps"], model=ModelConfig(**asked["model"])
        )[0]
    if rank == 0:
        print("\n" + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
