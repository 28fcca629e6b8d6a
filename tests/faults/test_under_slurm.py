"""A run of two nodes under a real Slurm, with every kind of fault that a cluster has: it resumes and ends as
an uninterrupted run.

`python -m tools.soak` injects more faults, and prints the tables of docs/reliability.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.tiny_run import launch
from tests.xla_flags import simulated
from tools.faults import CRASHES, PHASES, ROOT, SIGNALS, SMALL, Case, Job, strike
from tools.soak import STEPS, finish, problems_of, random_faults

pytestmark = [pytest.mark.slurm]


@pytest.fixture(scope="module")
def unbroken_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("unbroken")


@pytest.fixture
def unbroken(unbroken_folder, slurm_cluster):
    """A finished run without faults, made once."""
    job = Job(unbroken_folder / "run", STEPS)
    if not (job.run_dir / "summary.json").exists():
        job.submit()
        job.wait("COMPLETED")
    return job


def problems_after(folder, unbroken, *cases):
    """The broken promises of a run into which these faults were injected, one after another."""
    job, outcomes = Job(folder / "run", STEPS), []
    job.submit()
    for i, case in enumerate(cases):
        outcome = strike(job, case, rank=i % 2)
        assert outcome, f"the run has passed {case}"
        outcomes.append(outcome)
    return problems_of(outcomes, finish(job, unbroken))


def test_signals_and_crashes_in_one_run_lose_nothing_that_was_saved(tmp_path, unbroken):
    cases = (
        Case("TERM to one process", "train"),
        Case("kill -9 one process", "evaluate"),
        Case("scontrol requeue", "save"),
        Case("USR1", "sample"),
    )
    assert problems_after(tmp_path, unbroken, *cases) == []


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_saves_and_requeues(tmp_path, unbroken, phase):
    assert problems_after(tmp_path, unbroken, Case("TERM", phase)) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*SIGNALS, *CRASHES])
def test_a_run_survives_each_kind_of_fault(tmp_path, unbroken, fault):
    assert problems_after(tmp_path, unbroken, Case(fault, "train")) == []


@pytest.mark.slow
def test_twenty_random_faults_in_one_run(tmp_path, slurm_cluster):
    lines = random_faults(tmp_path, faults=20, seed=1)
    assert not [line for line in lines if line.startswith("WRONG")], "\n".join(lines)


def srun(job: Job, nodes: int, devices: int, until: int = 0) -> int:
    """Resumes a run on `nodes` nodes, with one process of `devices` devices on each, and returns its exit
    code.

    until: after this step it receives SIGTERM; 0: it runs to its end.
    """
    command = [
        "srun",
        "-Q",
        f"-N{nodes}",
        f"-n{nodes}",
        "--kill-on-bad-exit=0",
        sys.executable,
        "-m",
        "llm_jax.launch",
        *job.experiment,
    ]
    command += [
        f"checkpoint.every={2 * STEPS}",
        "sample.tokens=0",
        f"train.steps={job.steps}",
        f"run_dir={job.run_dir}",
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": simulated(devices)}
    started = subprocess.Popen(command, cwd=ROOT, env=environment)
    while until and job.last_step() < until:
        time.sleep(0.05)
        assert started.poll() is None
    if until:
        number = subprocess.run(["squeue", "-h", "-o", "%A"], capture_output=True, text=True).stdout.split()[
            0
        ]
        subprocess.run(["scancel", "--signal=TERM", number], check=True)
    return started.wait()


@pytest.fixture(scope="module")
def post_training(tmp_path_factory):
    """Experiments that continue from a trained model, by name, as words of the launcher."""
    base = tmp_path_factory.mktemp("base") / "run"
    once = (
        "train.steps=3",
        "optimizer.warmup_steps=1",
        "layout=single",
        "sample.tokens=0",
        f"run_dir={base}",
    )
    assert launch("experiment=quickstart", *SMALL, *once) == 0
    common = (
        f"from={base}", "chat.template=chatml", "tokenizer.control=['<|im_start|>', '<|im_end|>']", "layout=fsdp",
        "train.batch_size=8", "train.sequence_length=128", "train.progress_every=1", "optimizer.learning_rate=3e-3",
        "evaluate.every=20", "evaluate.batches=2", "evaluate.final_batches=2", "checkpoint.every=10", "sample.tokens=0",
    )  # fmt: skip
    adapter = ("adapter.rank=4", "train.trainable=[embedding]", "evaluate.base_batches=0")
    return {
        "SFT with an adapter": ("experiment=sft", "data.source=tasks", *common, *adapter),
        "DPO": ("experiment=dpo", "data.source=task_pairs", *common),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SFT with an adapter", "DPO"])
def test_post_training_survives_a_crash_and_a_requeue(tmp_path, slurm_cluster, post_training, name):
    job, whole = (Job(tmp_path / part, STEPS, experiment=post_training[name]) for part in ("run", "unbroken"))
    whole.submit()
    whole.wait("COMPLETED")
    job.submit()
    cases = Case("kill -9 one process", "train"), Case("scontrol requeue", "train")
    outcomes = [outcome for case in cases if (outcome := strike(job, case, rank=1))]
    assert len(outcomes) == len(cases)
    assert problems_of(outcomes, finish(job, whole)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "SFT with an adapter", "DPO"])
def test_two_nodes_of_four_devices_then_one_of_four_then_one_of_eight_see_the_same_tokens(
    tmp_path, slurm_cluster, post_training, name
):
    words = {"quickstart": Job.experiment, **post_training}[name]
    moved, whole = (Job(tmp_path / part, steps=45, experiment=words) for part in ("moved", "whole"))
    assert [srun(moved, 2, 4, until=15), srun(moved, 1, 4, until=30), srun(moved, 1, 8)] == [85, 85, 0]
    assert srun(whole, 2, 4) == 0
    ours, theirs = moved.steps_done(), whole.steps_done()
    assert list(ours) == list(theirs) == list(range(1, 46))
    for step, line in theirs.items():
        assert ours[step]["batch_sha"] == line["batch_sha"], step
        assert ours[step]["train_loss"] == pytest.approx(line["train_loss"], rel=1e-5), (
            step
        )  # float32 sums in another order: 2e-7 was measured
