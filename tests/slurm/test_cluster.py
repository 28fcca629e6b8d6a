"""tools/slurm_cluster.py: a real Slurm that starts on any machine, allocates its nodes and fake GPUs, and
leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import tool

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm_session")]


def processes_with(text: str) -> list[str]:
    """The processes whose command line or environment has the text in it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            about = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in about and folder.name != str(os.getpid()):
            found.append(about[:80].decode(errors="replace"))
    return found


def test_a_step_has_a_task_on_each_node(slurm_cluster):
    named = slurm_cluster.ask("srun", "-N3", "-n3", "printenv", "SLURMD_NODENAME").split()
    assert len(set(named)) == 3
    assert set(named) <= set(slurm_cluster.nodes)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make device nodes")
def test_each_task_is_bound_to_fake_gpus_of_its_own(slurm_cluster):
    line = "echo $SLURM_NODEID $CUDA_VISIBLE_DEVICES"
    bound = slurm_cluster.ask(
        "srun", "-N2", "-n4", "--ntasks-per-node=2", "--gpus-per-task=2", "bash", "-c", line
    ).splitlines()
    assert sorted(bound) == ["0 0,1", "0 2,3", "1 0,1", "1 2,3"]


def test_two_clusters_at_once_and_stopping_one_leaves_nothing_of_it(slurm_cluster, tmp_path):
    folder = tmp_path / "other"
    assert tool("start", f"folder={folder}", "nodes=1").stdout == f"export SLURM_CONF={folder}/slurm.conf\n"
    again = tool("start", f"folder={folder}")
    assert again.returncode == 2
    assert "a cluster is running in it" in again.stderr
    environment = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
    subprocess.run(
        ["sbatch", "--output=/dev/null", "--wrap", "srun sleep 1000"],
        env=environment,
        check=True,
        capture_output=True,
    )
    assert (
        subprocess.run(
            ["srun", "-n1", "printenv", "SLURM_JOB_ID"], env=environment, capture_output=True, text=True
        ).stdout
        == "2\n"
    )
    assert processes_with(str(folder))
    assert "node1" in tool("status", f"folder={folder}").stdout
    assert tool("stop", f"folder={folder}").returncode == 0
    assert not folder.exists()
    assert not processes_with(str(folder))
    assert "no cluster is running in it" in tool("env", f"folder={folder}").stderr
    assert slurm_cluster.ask("srun", "-n1", "printenv", "SLURMD_NODENAME").strip() in slurm_cluster.nodes


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for command in ("start", "stop"):
        done = tool(command, f"folder={tmp_path}")
        assert done.returncode == 2
        assert "is not empty, and no cluster's folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
