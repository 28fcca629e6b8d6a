"""Slurm's short forms of hosts and counts, and what launchers put into the environment."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from llm_jax.core.errors import UserError
from llm_jax.processes.launcher import expand_counts, expand_hosts, read_task

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True)
RANGE = st.tuples(st.integers(0, 300), st.integers(0, 5), st.integers(1, 4))


def short(first: int, more: int, width: int) -> tuple[str, list[str]]:
    """(a range as Slurm writes it, its numbers)"""
    numbers = [f"{i:0{width}d}" for i in range(first, first + more + 1)]
    return (numbers[0] if more == 0 else f"{numbers[0]}-{first + more:0{width}d}"), numbers


@given(st.lists(st.tuples(NAMES, st.lists(RANGE, max_size=3)), min_size=1, max_size=4))
def test_hosts_in_the_short_form_are_the_hosts(groups):
    texts, hosts = [], []
    for name, ranges in groups:
        parts = [short(*r) for r in ranges]
        texts.append(name + (f"[{','.join(text for text, _ in parts)}]" if parts else ""))
        hosts += [name + n for n in itertools.chain.from_iterable(n for _, n in parts)] if parts else [name]
    assert list(expand_hosts(",".join(texts))) == hosts


@given(st.lists(st.tuples(st.integers(1, 128), st.integers(1, 5)), min_size=1, max_size=6))
def test_counts_in_the_short_form_are_the_counts(runs):
    text = ",".join(str(count) if times == 1 else f"{count}(x{times})" for count, times in runs)
    assert expand_counts(text) == tuple(count for count, times in runs for _ in range(times))


WORD = st.sampled_from(["0", "1", "2", "-1", "", " ", "a", "1.5", "n[1-3]", "n[3-1]", "n[1-", "n[a-b]", "n[0-99999999999]",
                        "2(x2)", "2(x99999999999)", "None", "１", "²"]) | st.text(max_size=12)  # fmt: skip
KEYS = (
    "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST",
    "SLURM_JOB_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_RESV_PORTS", "SLURM_RESTART_COUNT",
    "SLURMD_NODENAME", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS",
    "LLM_JAX_RANK", "LLM_JAX_SIZE", "LLM_JAX_LOCAL_RANK", "LLM_JAX_LOCAL_SIZE", "LLM_JAX_COORDINATOR",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), WORD, max_size=12))
@example({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n[0-99999999999]"})
def test_any_environment_is_a_task_or_one_line(environment):
    try:
        task = read_task(environment)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert 0 <= task.rank < task.size
