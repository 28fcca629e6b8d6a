"""The commands of README.md and docs/*.md are real: each names an experiment, a module, a tool and keys that
there are.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from llm_jax.experiment import load_file
from llm_jax.launch import main
from llm_jax.train.config import words_without_from
from tests.conftest import ROOT
from tools.check_docs import PAGES, blocks_of, lines_of

LINES = sorted({line for page in PAGES for line in lines_of(page.read_text())})
LINES = [
    line for line in LINES if not re.search(r"experiment=\S*\.py", line)
]  # files of a reader's own: test_extending.py
LAUNCHES = [line.split("llm_jax.launch", 1)[1] for line in LINES if "llm_jax.launch" in line]
PLANS = [line.split("llm_jax.plan", 1)[1] for line in LINES if "llm_jax.plan experiment=" in line]


@pytest.mark.parametrize("arguments", LAUNCHES)
def test_a_launch_line_is_accepted(arguments, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    words = shlex.split(arguments)
    sources = [word.partition("=")[2] for word in words if word.startswith(("from=", "teacher="))]
    named = next((word.partition("=")[2] for word in words if word.startswith("experiment=")), "")
    if named == "scaling/lora_rates":  # its points read the base's tokenizer; tools/check_docs.py has that
        assert main([*words, "--show"]) == 2
        assert "runs/quickstart/default is not there. Train it" in capsys.readouterr().err
        return
    if named and not sources:  # what it starts with by itself
        base = getattr(load_file(named), "train", None)
        by_itself = words_without_from(base.start_from if base else "")
        sources = [word.partition("=")[2] for word in by_itself if word.startswith("from=")]
    if sources:  # runs that other lines make
        assert main(["experiment=quickstart", "--show"]) == 0
        config = capsys.readouterr().out
        monkeypatch.chdir(tmp_path)
        for source in sources:
            Path(source).mkdir(parents=True)
            (Path(source) / "config.yaml").write_text(config)
        for word in words:
            if word.startswith("adapter.from="):
                write_adapter(Path(word.partition("=")[2]), sources[0])
    words = [
        word for word in words if not word.startswith(("submit=", "slurm.")) and word != "--dry-run"
    ]  # tests/slurm/test_docs.py
    assert main(words if words[0].startswith("--") else [*words, "--show"]) == 0


def write_adapter(folder: Path, base: str) -> None:
    """A PEFT folder of an adapter for a model, of zeros."""
    from llm_jax.huggingface.peft import LowRank
    from llm_jax.huggingface.peft_write import made_here, write_peft
    from llm_jax.pretrained.adapter import base_of
    from llm_jax.pretrained.source import open_source

    source = open_source(base)
    peft = base_of(source, source.experiment.model.resolved(1))
    layers, embed, mlp = peft.shapes["blocks.mlp.up"]
    A, B = np.zeros((layers, embed, 1), np.float32), np.zeros((layers, 1, mlp), np.float32)
    low_rank = {"blocks.mlp.up": LowRank(A, B, np.ones(layers, int), np.ones(layers), rslora=False)}
    folder.mkdir(parents=True)
    write_peft(made_here(low_rank, peft, base), peft, folder)


@pytest.mark.parametrize("arguments", PLANS)
def test_a_plan_line_is_accepted(arguments, monkeypatch):
    from llm_jax.core.arguments import read_command
    from llm_jax.plan.__main__ import PlanCommand, planned_experiment

    monkeypatch.chdir(ROOT)
    command = read_command(shlex.split(arguments), PlanCommand)
    assert command
    assert planned_experiment(command).model.vocab
    assert command.devices
    assert command.hardware or command.picture


def test_the_experiment_file_of_the_page_is_accepted(tmp_path, capsys):
    (source,) = blocks_of((ROOT / "docs" / "experiments.md").read_text(), "python")
    (tmp_path / "mine.py").write_text(source)
    assert main([f"experiment={tmp_path / 'mine.py'}", "--show"]) == 0
    assert "kv_heads: 2" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tools_targets_tests_and_links_of_a_page_are_there(page):
    text = page.read_text()
    for tool in re.findall(r"python (tools/\w+\.py)", text):
        assert (ROOT / tool).is_file()
    for module in re.findall(r"python -m (llm_jax[\w.]*|tools\.\w+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for target in re.findall(r"^make (\w+)", "\n".join(lines_of(page.read_text())), re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
    own = re.findall(r"^# (llm_jax/\S+\.py)$", text, re.M)  # files that a reader adds
    for path in re.findall(r"(?<![\w./~-])((?:tests|llm_jax|experiments)/[\w/]*\w(?:\.\w+)?)", text):
        assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists() or "NAME" in path or path in own, path
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_presets_of_the_page_are_those_there_are():
    from llm_jax.layout.presets import PRESETS

    (listed,) = re.findall(r"Presets: (.*?)\.\n", (ROOT / "docs" / "experiments.md").read_text(), re.S)
    assert re.findall(r"`(\w+)`", listed) == list(PRESETS)
