"""An experiment file anywhere may define a layout that no preset has: it trains, and it plans, by its tables
alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np

from tests.tiny_run import ROOT, launch, losses, write_experiment

LAYOUT = """
from llm_jax.layout.layout import Layout

# context x FSDP: positions over one axis, sequences over the other, weights at rest over both; the vocabulary over both too
LAYOUT = Layout(
    "context_fsdp",
    mesh={"data": 2, "context": -1},
    compute={"batch": "data", "sequence": "context", "vocab": "data, context"},
    stored={"embed": "data, context"},
    attention={"keys": "context"},
)
"""


def test_a_layout_that_no_preset_has_trains_like_one_device(tmp_path):
    mine = write_experiment(tmp_path, "mine", LAYOUT, layout="LAYOUT")
    assert launch(f"experiment={mine}", f"run_dir={tmp_path / 'mine_run'}") == 0
    single = write_experiment(tmp_path, "one")
    assert launch(f"experiment={single}", f"run_dir={tmp_path / 'one_run'}") == 0
    ours, theirs = losses(tmp_path / "mine_run"), losses(tmp_path / "one_run")
    assert len(ours) == 8
    # float32 sums in another order: 1e-5, as in tests/parity
    np.testing.assert_allclose(
        [ours[s] for s in sorted(ours)], [theirs[s] for s in sorted(theirs)], rtol=1e-5
    )


def test_a_layout_that_no_preset_has_plans(tmp_path):
    mine = write_experiment(tmp_path, "mine", LAYOUT, layout="LAYOUT")
    arguments = [
        f"experiment={mine}",
        "model.vocab=320",
        "devices=8",
        "hardware=h100",
        "compiler=cpu",
        f"json={tmp_path / 'plan.json'}",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "llm_jax.plan", *arguments],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fits"]
    assert {c["axis"] for c in plan["collectives"]} & {"data", "context", "data+context"}
