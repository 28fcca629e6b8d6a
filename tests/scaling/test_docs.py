"""docs/scaling.md shows what its commands print, and its experiment file runs."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tests.tiny_run import launch
from tools.make_scaling_docs import PAGE, filled


def test_outputs_in_the_page_are_those_of_today(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert PAGE.read_text() == filled(PAGE.read_text()), "run python tools/make_scaling_docs.py"


def test_the_grid_of_the_page_is_accepted(tmp_path, capsys):
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (tmp_path / "mine.py").write_text(source)
    assert launch(f"experiment={tmp_path / 'mine.py'}", "--dry-run", "grid.hardware=h100") == 0
    assert "mine: 9 points" in capsys.readouterr().out


def test_commands_of_the_page_name_what_there_is(monkeypatch):
    monkeypatch.chdir(ROOT)
    for arguments in re.findall(r"^python -m llm_jax.launch (.*)$", PAGE.read_text(), re.M):
        assert launch(*arguments.replace("--dry-run", "").split(), "--show") == 0
