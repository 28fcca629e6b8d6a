"""The processes that a real Slurm starts: their ranks, their GPUs, faults and signals."""

from __future__ import annotations

import json
import re
import sys
import time

import pytest

from tests.processes.launch_group import PRELUDE, indented

pytestmark = pytest.mark.slurm

FACTS = """
from llm_jax.processes.local_gpus import local_devices
from llm_jax.processes.preflight import check_devices, facts
mine = group.task
share = local_devices(mine, os.environ)
found = facts(group, "", {**os.environ, "JAX_PLATFORMS": ""})
everyone = group.exchange("who", [mine.host, mine.local_rank, mine.local_size, found["devices"], share])
check_devices(group.exchange("facts", found))
time.sleep(float(os.environ.get("NAP", 0)))
if rank == 0:
    import json
    report(json.dumps(everyone))
"""
STEPS = """
for step in range(1, 2000):
    group.mark("train", step)
    group.exchange("step")
    group.arm()
    if group.poll():
        report("stopped", step, group.received, group.reason.split()[0])
        return 85
    if step == 10 and rank == int(os.environ.get("WHO", -1)):
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 10 and rank == 0:
        report("going")
    time.sleep(0.02)
"""


def program(body: str, **config: float) -> list[str]:
    """A command that runs the body as one process of a group."""
    text = PRELUDE.format(
        before=indented("pass"), body=indented(body), config={"start_seconds": 30.0, **config}
    )
    return [sys.executable, "-u", "-c", text]


def srun(cluster, options: str, body: str, **more: str):
    """A step of its own job, from start to end, on the first nodes: by itself, Slurm takes others while those
    still clear up after a job."""
    nodes = ",".join(cluster.nodes[: int(re.search(r"-N(\d)", options)[1])])
    return cluster.run("srun", "-Q", "-w", nodes, *options.split(), *program(body), **more)


NODES = ("node1", "node2")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-N2 -n2 --gpus-per-node=4", [("node1", 0, 1, "0123", None), ("node2", 0, 1, "0123", None)]),
        ("-N1 -n4 --gpus-per-node=4", [("node1", i, 4, str(i), [i]) for i in range(4)]),
        (
            "-N2 -n4 --ntasks-per-node=2 --gpus-per-node=4",
            [(node, i, 2, ("01", "23")[i], [2 * i, 2 * i + 1]) for node in NODES for i in range(2)],
        ),
        (
            "-N2 -n4 --ntasks-per-node=2 --gpus-per-task=1",
            [(node, i, 2, str(i), None) for node in NODES for i in range(2)],
        ),
        ("-N1 -n1 --gpus-per-task=3", [("node1", 0, 1, "012", None)]),
        ("-N2 -n2", [("node1", 0, 1, "", None), ("node2", 0, 1, "", None)]),
    ],
    ids=["a task per node", "a task per GPU", "two tasks for four", "--gpus-per-task=1", "one task with "
    "some", "no GPUs"],
)  # fmt: skip
def test_every_task_knows_its_place_and_its_gpus(slurm_cluster, options, expected):
    if "gpus" in options and not slurm_cluster.gpus:
        pytest.skip("fake GPUs are device files, which only root can make")
    done = srun(slurm_cluster, options, FACTS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        [host, rank, size, list(devices), share] for host, rank, size, devices, share in expected
    ]


def test_gpus_that_slurm_allocated_and_no_process_uses_are_a_user_error(slurm_cluster):
    if not slurm_cluster.gpus:
        pytest.skip("fake GPUs are device files, which only root can make")
    done = srun(slurm_cluster, "-N1 -n2 --gpus-per-node=4 --gpu-bind=single:1", FACTS)
    assert (
        "node1: Slurm allocated 4 GPUs, and 2 tasks see 2 of them (CUDA_VISIBLE_DEVICES=0 and "
        "CUDA_VISIBLE_DEVICES=1)" in done.stderr
    )
    assert done.returncode == 2
    done = srun(slurm_cluster, "-N1 -n3 --gpus-per-node=4", FACTS)
    assert "node1: 3 tasks share 4 GPUs, which doesn't divide. Start a task per GPU" in done.stderr
    assert done.returncode == 2


def test_uneven_tasks_on_two_nodes_and_two_steps_of_a_job_at_once(slurm_cluster):
    step = ["srun", "-Q", "--overlap", "-n3", *program(FACTS)]
    script = """
import subprocess, sys
steps = [subprocess.Popen(sys.argv[1:]) for _ in range(2)]
sys.exit(sum(step.wait() for step in steps))
"""
    done = slurm_cluster.run(
        "salloc", "-Q", "-w", "node1,node2", "-N2", "-n3", sys.executable, "-c", script, *step, NAP="1"
    )
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == second
    assert [(host, rank, size) for host, rank, size, _, _ in first] == [
        ("node1", 0, 2),
        ("node1", 1, 2),
        ("node2", 0, 1),
    ]


def test_a_batch_script_without_srun_is_a_user_error(slurm_cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text('#!/bin/bash\n"$@"\necho "code $?"\n')
    done = slurm_cluster.run("sbatch", "--wait", "-n2", "-o", tmp_path / "out.txt", script, *program("pass"))
    assert done.returncode == 0, done.stderr
    out = (tmp_path / "out.txt").read_text()
    assert "error: SLURM_NTASKS=2: the job has 2 tasks, and this process was started without srun" in out
    assert "code 2" in out


def test_kill_9_of_one_task_ends_the_step_soon_and_is_named(slurm_cluster):
    done = srun(slurm_cluster, "-N2 -n4", STEPS, WHO="3")
    assert done.returncode == 137
    assert (
        done.stderr.count("error: the run stops: rank 3 on node2 in phase ") == 3
    )  # the phase it was in a second before, at the earliest


def test_a_signal_of_scancel_stops_all_tasks_at_one_step(slurm_cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text('#!/bin/bash\nsrun "$@"\nexit $?\n')
    out = tmp_path / "out.txt"
    job = slurm_cluster.ask(
        "sbatch", "--parsable", "-N2", "-n4", "--no-requeue", "-o", out, script, *program(STEPS)
    ).strip()
    end = time.monotonic() + 60
    while not (out.exists() and "going" in out.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    slurm_cluster.ask("scancel", "--signal=USR1", job)
    assert slurm_cluster.wait(job, "FAILED")["ExitCode"] == "85:0"
    stopped = [line for line in out.read_text().splitlines() if line.startswith("stopped")]
    assert len(stopped) == 4
    assert len(set(stopped)) == 1
    assert stopped[0].endswith("10 SIGUSR1")


def test_a_job_stops_before_its_time_limit_without_any_signal(slurm_cluster):
    soon = "group.monitor.limit -= 42; group.monitor.margin += 42\n"  # a minute is the least that Slurm gives
    body = soon + STEPS.replace("group.reason.split()[0]", "group.reason")
    done = slurm_cluster.run("srun", "-Q", "-N2", "-n2", "-t1", *program(body, stop_before_end_seconds=15.0))
    assert done.returncode == 85, done.stderr
    stopped = [line for line in done.stdout.splitlines() if line.startswith("stopped")]
    assert len(stopped) == 2
    assert len(set(stopped)) == 1
    assert stopped[0].endswith("the end of the job's time limit")
