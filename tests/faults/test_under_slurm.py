"""A run of two nodes under a real Slurm, broken in all ways that a cluster knows: it ends by itself, as if nothing had happened.

`python -m tools.soak` does the same at length and makes the tables of docs/reliability.md.
"""

from __future__ import annotations

import pytest

from tools.faults import CRASHES, PHASES, SIGNALS, Case, Job, strike
from tools.soak import STEPS, finish, soak, wrong

pytestmark = [pytest.mark.slurm]


@pytest.fixture(scope="module")
def unbroken_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("unbroken")


@pytest.fixture
def unbroken(unbroken_folder, slurm_cluster):
    """A run that nothing happened to, made once."""
    job = Job(unbroken_folder / "run", STEPS)
    if not (job.run_dir / "summary.json").exists():
        job.submit()
        job.wait("COMPLETED")
    return job


def broken_and_finished(folder, unbroken, *cases):
    """What was not as promised of a run that these faults struck, one after another."""
    job, outcomes = Job(folder / "run", STEPS), []
    job.submit()
    for i, case in enumerate(cases):
        outcome = strike(job, case, rank=i % 2)
        assert outcome, f"the run went past {case}"
        outcomes.append(outcome)
    return wrong(outcomes, finish(job, unbroken))


def test_signals_and_crashes_in_one_run_lose_nothing_that_was_saved(tmp_path, unbroken):
    cases = Case("TERM to one process", "train"), Case("kill -9 one process", "evaluate"), Case("scontrol requeue", "save"), Case("USR1", "sample")
    assert broken_and_finished(tmp_path, unbroken, *cases) == []


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_saves_and_requeues(tmp_path, unbroken, phase):
    assert broken_and_finished(tmp_path, unbroken, Case("TERM", phase)) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*SIGNALS, *CRASHES])
def test_a_run_survives_each_kind_of_fault(tmp_path, unbroken, fault):
    assert broken_and_finished(tmp_path, unbroken, Case(fault, "train")) == []


@pytest.mark.slow
def test_twenty_random_faults_in_one_run(tmp_path, slurm_cluster):
    lines = soak(tmp_path, faults=20, seed=1)
    assert not [line for line in lines if line.startswith("WRONG")], "\n".join(lines)
