"""The examples of docs/extending.md, followed literally: files are written, commands are run, and their results are compared."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.files import read_json_lines
from llm_jax.objective.protocol import OBJECTIVES
from llm_jax.run import run
from llm_jax.train.optimizer import BUILDERS
from tests.conftest import ROOT
from tests.tiny_run import losses
from tools.check_docs import blocks_of, lines_of

PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M))
MAINS = {"llm_jax.evaluate": "llm_jax.evaluate.__main__"}
DRIVER = f"""
import importlib, json, sys
for name, arguments in json.loads(sys.argv[1]):
    if code := importlib.import_module({MAINS!r}.get(name, name)).main(arguments):
        sys.exit(code)
"""


def write_files(section: str, folder: Path) -> None:
    """Writes the files of a section's Python blocks, each named by its first line."""
    for block in blocks_of(SECTIONS[section], "python"):
        name = block.splitlines()[0].removeprefix("# ")
        assert name.endswith(".py"), block
        (folder / name).write_text(block)


def words_of(line: str) -> list[str]:
    """The words of a command, without the variables before it: eight devices are simulated in tests anyway."""
    return [word for word in shlex.split(line) if not word.startswith("XLA_FLAGS=")]


def follow(section: str, folder: Path) -> list[str]:
    """Writes a section's files and runs its commands in this process where they are the package's own; what the others printed."""
    write_files(section, folder)
    printed = []
    for line in lines_of(SECTIONS[section]):
        program, *words = words_of(line)
        assert program == "python"
        if words[0] == "-m":
            assert importlib.import_module(MAINS.get(words[1], words[1])).main(words[2:]) == 0, line
        else:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            printed.append(done.stdout)
    return printed


def follow_in_a_copy(section: str, folder: Path) -> str:
    """Follows a section that adds a file to the package, in a process that runs a copy of the package; what it printed."""
    shutil.copytree(ROOT / "llm_jax", folder / "llm_jax", dirs_exist_ok=True)
    write_files(section, folder)
    commands = [(words[2], words[3:]) for words in map(words_of, lines_of(SECTIONS[section]))]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    arguments = [sys.executable, "-c", DRIVER, json.dumps(commands)]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder where the first section has been followed: a corpus, a small experiment, and its run."""
    made, before = tmp_path_factory.mktemp("extending"), Path.cwd()
    known = dict(OBJECTIVES), dict(BUILDERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run, "device_peak", lambda mesh, dtype, processes=1: 1e11
        )  # measuring it takes a second
        patch.syspath_prepend(str(made))
        os.chdir(made)
        try:
            follow("A data source", made)
            yield made
        finally:
            os.chdir(before)
            sys.modules.pop("small", None)
            for registry, names in zip((OBJECTIVES, BUILDERS), known, strict=True):
                for name in set(registry) - set(names):
                    del registry[name]


def losses_of(run_dir: Path) -> np.ndarray:
    found = losses(run_dir)
    assert len(found) == 8
    return np.array([found[step] for step in sorted(found)])


def test_every_section_is_followed_by_a_test():
    assert list(SECTIONS) == [
        *("A data source", "A layout", "An objective", "A record format", "An evaluation score"),
        *("An evaluation task", "An optimizer", "An attention kernel", "A model family", "A command"),
    ]


def test_a_data_source_is_trained_on(folder):
    trained = losses_of(folder / "runs" / "small")
    assert trained[-1] < trained[0]


def test_a_layout_gives_the_losses_of_one_device(folder):
    follow("A layout", folder)
    np.testing.assert_allclose(
        losses_of(folder / "runs/context_fsdp"), losses_of(folder / "runs/small"), rtol=1e-5
    )


def test_an_objective_agrees_with_cross_entropy_at_0_and_with_one_device(folder):
    follow("An objective", folder)
    focal, zero, many, plain = (
        losses_of(folder / "runs" / name) for name in ("focal", "focal_0", "focal_8", "small")
    )
    np.testing.assert_allclose(zero, plain, rtol=1e-5)
    np.testing.assert_allclose(many, focal, rtol=1e-5)
    assert (focal < plain).all()


def test_a_record_format_trains_the_results_only(folder):
    follow("A record format", folder)
    weights = [
        line["loss_weight"]
        for line in read_json_lines(folder / "runs/answers/metrics.jsonl")
        if "loss_weight" in line
    ]
    assert len(weights) == 8
    assert all(
        0 < weight < 0.1 * 8 * 512 for weight in weights
    )  # three of the 50 tokens of a sentence are its result


def test_a_score_is_in_the_metrics_and_the_summary(folder):
    follow("An evaluation score", folder)
    scores = [
        line["eval_confident"]
        for line in read_json_lines(folder / "runs/confident/metrics.jsonl")
        if "eval_confident" in line
    ]
    assert len(scores) == 2
    assert json.loads((folder / "runs/confident/summary.json").read_text())["eval_confident"] == scores[-1]
    np.testing.assert_allclose(
        losses_of(folder / "runs/confident"), losses_of(folder / "runs/small"), rtol=1e-6
    )


def test_an_evaluation_task_is_scored(folder):
    follow("An evaluation task", folder)
    (result,) = json.loads((folder / "sums.json").read_text())["results"]
    assert (result["task"], result["n"], result["chance"]) == ("sums", 50, 0.5)
    assert result["ci95"][0] < result["value"] < result["ci95"][1]


def test_an_optimizer_trains(folder):
    follow("An optimizer", folder)
    trained = losses_of(folder / "runs/signum")
    assert trained[-1] < trained[0]
    assert (trained[2:] != losses_of(folder / "runs/small")[2:]).all()


def test_an_attention_kernel_gives_the_losses_of_xla(folder):
    follow_in_a_copy("An attention kernel", folder)
    np.testing.assert_allclose(losses_of(folder / "runs/plain"), losses_of(folder / "runs/small"), rtol=1e-5)


def test_a_family_alias_is_written_and_read_again(folder):
    printed = follow_in_a_copy("A model family", folder)
    assert json.loads((folder / "exported/config.json").read_text())["model_type"] == "acme"
    summary = json.loads((folder / "runs/small/summary.json").read_text())
    loss = re.search(r"loss +([\d.]+) nats", printed)
    assert loss is not None
    assert float(loss[1]) == pytest.approx(
        summary["eval_loss"], abs=0.05
    )  # on all held-out documents, not one batch


def test_a_command_prints_help_and_its_result(folder):
    help_text, counted = follow("A command", folder)
    assert "RUN" in help_text
    assert re.search(r"show=N +Prints the first few token ids\. \(default: 5\)", help_text)
    assert re.fullmatch(r"\d+ tokens: \d+, \d+, \d+ \.\.\.\n", counted)
