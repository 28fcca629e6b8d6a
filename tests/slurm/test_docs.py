"""The commands, scripts and settings in docs/cluster.md work."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess

import pytest

from llm_jax.launch import main
from llm_jax.slurm.config import SlurmConfig, read_site
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "cluster.md").read_text()
BASH = re.findall(r"```bash\n(.*?)```", TEXT, re.S)
LAUNCHES = sorted(
    {
        line.split("llm_jax.launch", 1)[1]
        for block in BASH
        for line in block.splitlines()
        if "submit=slurm" in line
    }
)


@pytest.mark.parametrize("arguments", LAUNCHES)
def test_a_submitting_line_prints_a_script(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("LLM_JAX_SITE", raising=False)
    monkeypatch.chdir(ROOT)
    words = shlex.split(arguments)
    assert (
        main(
            [
                *words,
                *["--dry-run"] * ("--dry-run" not in words),
                *["grid.hardware=h100"] * ("scaling/" in arguments),
            ]
        )
        == 0
    )
    assert "#SBATCH --requeue" in capsys.readouterr().out


def test_scripts_are_bash():
    scripts = [block for block in BASH if block.startswith("#!")]
    assert len(scripts) == 2
    for script in scripts:
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_settings_of_a_site_are_accepted_and_every_key_is_documented(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    (tmp_path / "site.yaml").write_text(example)
    site = read_site(tmp_path / "site.yaml")
    site.slurm.check()
    assert (site.slurm.time, site.python, site.sbatch) == ("24:00:00", "python", ["--exclusive"])
    for field in dataclasses.fields(site):
        assert re.search(rf"^{field.name}:", example, re.M)
    for field in dataclasses.fields(SlurmConfig):
        assert f"slurm.{field.name}" in TEXT or f"`{field.name}=`" in TEXT


def fragments(message: str) -> list[str]:
    """The parts of a documented message that don't depend on the run: between numbers, paths, names and
    "..."."""
    parts = re.split(
        r"\.\.\.|\d+\S*|'\w+'|\b\w+=\S*|\bnode\b|\b[A-Z_]{2,}\b|\b(?:train|pending|step)\b|[(),:;]", message
    )
    return [part.strip(" .") for part in parts if len(part.strip(" .")) >= 12]


def test_the_error_messages_of_the_table_are_those_of_the_code():
    table = TEXT.split("## Error messages", 1)[1].split("\n## ", 1)[0]
    cells = [cell for cell in re.findall(r"^\| ([^|]*) \|", table, re.M) if "`" in cell]
    source = "\n".join(path.read_text() for path in sorted((ROOT / "llm_jax").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # texts of several lines
    found = [fragment for cell in cells for fragment in fragments(re.findall(r"`([^`]*)`", cell)[0])]
    assert len(found) > 30
    not_ours = {"invalid partition specified", "No space left on device"}  # Slurm's and the system's
    assert {fragment for fragment in found if fragment not in source} <= not_ours
