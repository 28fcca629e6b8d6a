"""How soon a model answers: in a dtype that is fast where it runs, and from programs that an earlier process
compiled.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from llm_jax.evaluate.__main__ import main as evaluate
from llm_jax.experiment import read_experiment
from llm_jax.generate.__main__ import main as generate
from llm_jax.inspect.__main__ import main as inspect
from llm_jax.pretrained.model import open_model
from llm_jax.pretrained.save import main as save
from tests.tiny_run import ROOT, launch, write_experiment

LINE = "dtype=float32: the model's is bfloat16, which a CPU emulates"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder in bfloat16, with a tokenizer, and beside it the text that it was trained on."""
    folder = tmp_path_factory.mktemp("narrow")
    path = write_experiment(folder)
    assert launch(f"experiment={path}", f"run_dir={folder / 'run'}", "train.steps=1") == 0
    assert save([str(folder / "run"), str(folder / "out"), "dtype=bfloat16"]) == 0
    return folder / "out"


def test_a_model_in_bfloat16_computes_in_float32_on_a_cpu_unless_asked(narrow, tmp_path, capsys):
    text = f"data.source={narrow.parent / 'small.jsonl'}"
    for command in (
        lambda *more: generate([str(narrow), "prompt=a", "max_tokens=2", *more]),
        lambda *more: evaluate([str(narrow), text, "train.sequence_length=32", "batches=1", *more]),
        lambda *more: inspect([str(narrow), "text=a b", f"out={tmp_path / 'page'}", *more]),
    ):
        assert command() == 0
        assert LINE in capsys.readouterr().err
        assert command("dtype=bfloat16") == 0
        assert "emulates" not in capsys.readouterr().err
    kept = open_model(narrow, to_convert=True)  # nothing is computed with it
    assert {a.dtype.name for a in jax.tree.leaves(kept.parameters)} == {"bfloat16"}


def test_training_that_begins_with_bfloat16_weights_keeps_small_updates(narrow, tmp_path, capsys):
    """Rounded to bfloat16, a weight would not change by less than 1/256 of itself."""
    line = [f"experiment={write_experiment(tmp_path)}", f"from={narrow}", "train.steps=1"]
    assert launch(*line, f"run_dir={tmp_path / 'run'}") == 0
    assert "model.compute_dtype=float32: the model's is bfloat16" in capsys.readouterr().out
    model = read_experiment(tmp_path / "run").model
    assert (model.parameter_dtype, model.compute_dtype) == ("float32", "float32")
    assert launch(*line, f"run_dir={tmp_path / 'asked'}", "model.compute_dtype=bfloat16") == 0
    assert read_experiment(tmp_path / "asked").model.compute_dtype == "bfloat16"
    assert "emulates" not in capsys.readouterr().out


PROGRAM = """
import sys
import jax
counts = {"hits": 0, "misses": 0}
def count(event, **_):
    for name in counts:
        counts[name] += event == f"/jax/compilation_cache/cache_{name}"
jax.monitoring.register_event_listener(count)
from importlib import import_module
from llm_jax.layout import compilation_cache
compilation_cache.WORTH_KEEPING = 0.0  # programs of small models count too
code = import_module(sys.argv[1]).main(sys.argv[2:])
print("counted", counts["hits"], counts["misses"], file=sys.stderr)
sys.exit(code)
"""


def counts_of(module: str, cache: Path, *arguments: object) -> tuple[int, int]:
    """(programs that were read from the cache, programs that were compiled and kept) by a command in a
    process of its own, with one device."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" and not k.startswith("JAX_")}
    environment |= {"LLM_JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-c", PROGRAM, module, *map(str, arguments)]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    hits, misses = done.stderr.split("counted ")[1].split()[:2]
    return int(hits), int(misses)


@pytest.mark.parametrize(
    "command",
    ["generate", *(pytest.param(name, marks=pytest.mark.slow) for name in ("evaluate", "inspect", "launch"))],
)
def test_a_second_process_compiles_nothing_again(narrow, tmp_path, command):
    source = f"data.source={narrow.parent / 'small.jsonl'}"
    module, *line = {
        "generate": ("llm_jax.generate.__main__", narrow, "prompt=a", "max_tokens=4"),
        "evaluate": ("llm_jax.evaluate.__main__", narrow, source, "train.sequence_length=32", "batches=1"),
        "inspect": ("llm_jax.inspect.__main__", narrow, "text=a b", f"out={tmp_path / 'page'}"),
        "launch": ("llm_jax.launch", f"experiment={write_experiment(tmp_path)}", "train.steps=2"),
    }[command]
    runs = [[f"run_dir={tmp_path / name}"] if command == "launch" else [] for name in ("one", "two")]
    first, second = (counts_of(module, tmp_path / "cache", *line, *run) for run in runs)
    assert first[1] > 0
    assert second == (first[0] + first[1], 0)
