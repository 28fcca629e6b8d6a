"""The README's commands are real: each launch line names an experiment and keys that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from llm_jax.launch import main
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()]
LAUNCHES = [line.split("llm_jax.launch", 1)[1] for line in COMMANDS if "llm_jax.launch" in line]


@pytest.mark.parametrize("arguments", LAUNCHES)
def test_launch_line_of_the_readme_is_accepted(arguments, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    words = shlex.split(arguments)
    if source := next((word.removeprefix("from=") for word in words if word.startswith("from=")), None):  # a run that another line makes
        assert main(["experiment=quickstart", "--show"]) == 0
        monkeypatch.chdir(tmp_path)
        Path(source).mkdir(parents=True)
        (Path(source) / "config.yaml").write_text(capsys.readouterr().out)
    assert main(words if words[0].startswith("--") else [*words, "--show"]) == 0


PLANS = [
    line.split("llm_jax.plan", 1)[1]
    for text in (README, (ROOT / "docs" / "plan.md").read_text())
    for block in re.findall(r"```bash\n(.*?)```", text, re.S)
    for line in block.splitlines()
    if "llm_jax.plan experiment=" in line
]


@pytest.mark.parametrize("arguments", PLANS)
def test_plan_line_of_readme_and_docs_is_accepted(arguments, monkeypatch):
    from llm_jax.core.arguments import read_command
    from llm_jax.plan.__main__ import PlanCommand, planned_experiment

    monkeypatch.chdir(ROOT)
    command = read_command(shlex.split(arguments, comments=True), PlanCommand)
    assert command
    assert planned_experiment(command).model.vocab
    assert command.devices
    assert command.hardware or command.picture


def test_experiment_file_of_the_readme_is_accepted(tmp_path, capsys):
    (source,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (tmp_path / "mine.py").write_text(source)
    assert main([f"experiment={tmp_path / 'mine.py'}", "--show"]) == 0
    assert "kv_heads: 2" in capsys.readouterr().out


def test_tools_of_the_readme_are_there():
    for tool in re.findall(r"python (tools/\S+\.py)", README):
        assert (ROOT / tool).is_file()
    for target in re.findall(r"^make (\w+)", "\n".join(COMMANDS), re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_presets_of_the_readme_are_those_there_are():
    from llm_jax.layout.presets import PRESETS

    (listed,) = re.findall(r"Presets: (.*?)\. All", README, re.S)
    assert re.findall(r"`(\w+)`", listed) == list(PRESETS)
