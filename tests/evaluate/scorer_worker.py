"""One of several processes that score together: python -m tests.evaluate.scorer_worker ADDRESS COUNT RANK

Prints the log-probabilities as the last line, as JSON.
"""

from __future__ import annotations

import json
import sys

import jax


def main(address: str, count: int, rank: int) -> None:
    """Scores the requests of the layout test on the devices of all processes together."""
    jax.distributed.initialize(address, count, rank, initialization_timeout=60)
    from llm_jax.evaluate.scorer import Scorer  # after the processes have met
    from tests.evaluate.test_scorer import layout_model, requests_of

    found = Scorer(layout_model("fsdp_tensor")).score(requests_of(5))
    print("\n" + json.dumps([scored.logprobs.tolist() for scored in found]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
