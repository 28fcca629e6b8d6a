"""How long inputs are searched for: a few seconds a test here, `python -m tools.fuzz minutes=60` for long.

In the suite the inputs are the same in every run, so no commit is red because of another's luck.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("LLM_JAX_FUZZ_EXAMPLES", "0"))
"""Inputs for each test; 0: few, and always the same."""
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("suite", max_examples=100, derandomize=True, database=None, **COMMON)
settings.register_profile("long", max_examples=EXAMPLES or 100, **COMMON)
settings.load_profile("long" if EXAMPLES else "suite")
