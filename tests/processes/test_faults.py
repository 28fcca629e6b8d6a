"""A process that dies, raises, hangs or is suspended ends the whole run within a bounded time, is named by
all others, and is recorded."""

from __future__ import annotations

import signal
import time

import pytest

from llm_jax.processes import fault_log
from tests.processes.launch_group import Ended, ended, ran, started, wait_for

# Steps in lockstep, as with collectives; something happens in one of them.
STEPS = """
group.record_faults_in({folder!r})
group.mark("compile")
for step in range(1, 100_000):
    # Only rank 0 has the fingerprint, as in training.
    group.mark("train", step, f"batch{{step}}-0123456789" if rank == 0 else None)
    if step == 5 and rank == {who}:
        time.sleep(1.2)  # time for a beat, which has its phase and step
        {what}
    group.exchange("step")
    group.arm()
    if step == 4:
        report("going")
"""
SUICIDE = "os.kill(os.getpid(), signal.SIGKILL)"


def steps(folder, who: int, what: str) -> str:
    return STEPS.format(folder=str(folder), who=who, what=what)


def check(processes: list[Ended], folder, who: int, kind: str, message: str, code: int) -> dict:
    """The culprit has its code; every other one ended with 86 and one line that names it; the run folder has
    one record."""
    for rank, process in enumerate(processes):
        assert process.code == (code if rank == who else 86), (rank, process)
        if rank != who:
            assert process.err.splitlines()[-1].startswith(f"error: the run stops: rank {who} on "), (
                process.err
            )
            assert message in process.err, process.err
    (fault,) = fault_log.read(folder)
    assert (fault["kind"], fault["rank"], fault["phase"], fault["step"], fault["batch"]) == (
        kind,
        who,
        "train",
        5,
        "batch5-0123456789",
    )
    assert message in fault["message"]
    assert fault["time"] == pytest.approx(time.time(), abs=60)
    return fault


@pytest.mark.parametrize("who", [0, 2])
def test_a_killed_process_is_named_by_all_others(tmp_path, who):
    processes = ran(3, steps(tmp_path, who, SUICIDE))
    check(processes, tmp_path, who, "killed", "ended without an error", -signal.SIGKILL)
    assert sum(process.err.count("\n") for process in processes) == 2


def test_an_exception_is_a_traceback_there_and_a_line_elsewhere(tmp_path):
    who = 0
    processes = ran(2, steps(tmp_path, who, "raise ValueError('loss is a\\nsecret')"))
    fault = check(processes, tmp_path, who, "exception", "ValueError: loss is a secret", 1)
    assert "Traceback (most recent call last)" in processes[who].err
    assert (fault["job"], fault["restart"]) == ("", 0)
    assert sum(process.err.count("Traceback") for process in processes) == 1


def test_an_exception_in_a_thread_ends_the_run_too(tmp_path):
    processes = ran(
        2,
        steps(tmp_path, 1, "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()"),
    )
    check(processes, tmp_path, 1, "exception", "ZeroDivisionError", 1)


def test_the_cause_is_named_and_not_what_it_led_to(tmp_path):
    """A death makes collectives fail elsewhere, whose exceptions may come first."""
    body = f"""
group.record_faults_in({str(tmp_path)!r})
group.mark("train", 7)
if rank == 2:
    time.sleep(1.5)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1.2)
raise RuntimeError("connection reset by peer")
"""
    processes = ran(3, body)
    assert [process.code for process in processes] == [86, 86, -9]
    assert all(
        process.err.startswith("error: the run stops: rank 2 on") and process.err.count("\n") == 1
        for process in processes[:2]
    )
    (fault,) = fault_log.read(tmp_path)
    assert (fault["kind"], fault["rank"]) == ("killed", 2)


def test_of_two_exceptions_the_first_is_the_culprit(tmp_path):
    processes = ran(
        2,
        f"group.record_faults_in({str(tmp_path)!r})\ntime.sleep(0.3 * (rank == 0))\nraise ValueError(f'I "
        f"am {{rank}}')",
    )
    assert [process.code for process in processes] == [86, 1]
    assert "ValueError: I am 1" in processes[0].err


@pytest.mark.parametrize("who", [0, 2])
def test_a_suspended_process_is_missed_and_named(tmp_path, who):
    with started(
        3, steps(tmp_path, who, "os.kill(os.getpid(), signal.SIGSTOP)"), beat_seconds=2.0
    ) as processes:
        others = ended([process for rank, process in enumerate(processes) if rank != who])
        assert processes[who].poll() is None
        processes[who].send_signal(signal.SIGCONT)  # it learns that the run went on without it
        (late,) = ended([processes[who]])
    assert late.code == 1
    found = [*others]
    found.insert(who, late)
    check(found, tmp_path, who, "silent", "was not heard of for", 1)


def test_a_process_that_holds_pythons_lock_is_missed_and_shows_its_stacks(tmp_path):
    """Its own threads can't run: the others miss it, and a thread without Python ends it."""
    stuck = "import ctypes; ctypes.PyDLL(None).sleep(50)"
    who = 1
    processes = ran(2, steps(tmp_path, who, stuck), beat_seconds=2.0)
    check(processes, tmp_path, who, "silent", "stuck in a library", 1)
    assert "Timeout" in processes[who].err
    assert "in main" in processes[who].err


def test_a_hang_is_ended_with_everyones_stacks_and_who_is_behind_is_named(tmp_path):
    who = 2
    processes = ran(3, steps(tmp_path, who, "time.sleep(100)"), hang_seconds=2.0)
    check(
        processes,
        tmp_path,
        who,
        "hang",
        "(cluster.hang_seconds=2), while the others wait for it; it is at ",
        1,
    )
    for rank, process in enumerate(processes):
        stacks = (tmp_path / "faults" / f"rank_{rank}.txt").read_text()
        for place in (stacks, process.err):
            assert "in main" in place
            assert ("in exchange" in place) == (rank != who)


def test_a_hang_of_a_run_of_one_process_ends_too(tmp_path):
    (process,) = ran(1, steps(tmp_path, 0, "time.sleep(100)"), hang_seconds=1.0)
    assert process.code == 1
    assert "(cluster.hang_seconds=1)" in process.err
    assert "in main" in (tmp_path / "faults" / "rank_0.txt").read_text()
    (fault,) = fault_log.read(tmp_path)
    assert (fault["kind"], fault["step"]) == ("hang", 5)


def test_compiling_and_preparing_data_may_take_longer():
    body = """
group.mark("data")
time.sleep(1)
group.mark("compile")
time.sleep(1)
group.mark("train", 1)
"""
    assert [process.code for process in ran(2, body, hang_seconds=0.4, compile_seconds=10.0)] == [0, 0]


def test_a_run_that_was_suspended_as_a_whole_goes_on():
    """As by Ctrl-Z, or with its machine: no process is at fault."""
    body = """
group.mark("train", 1)
end = time.monotonic() + 5.5
report("going")
while time.monotonic() < end:
    time.sleep(0.05)
group.mark("train", 2)
"""
    with started(1, body, hang_seconds=3.0, beat_seconds=2.0) as processes:
        wait_for(processes[0], "going")
        processes[0].send_signal(signal.SIGSTOP)
        time.sleep(4)
        processes[0].send_signal(signal.SIGCONT)
        (process,) = ended(processes)
    assert process.code == 0, process.err


def test_an_exception_of_a_run_of_one_process_is_raised_and_recorded(tmp_path):
    (process,) = ran(1, steps(tmp_path, 0, "raise ValueError('no')"))
    assert process.code == 1
    assert process.err.count("Traceback") == 1
    (fault,) = fault_log.read(tmp_path)
    assert (fault["kind"], fault["message"], fault["step"]) == ("exception", "ValueError: no", 5)


def test_a_fault_of_the_machine_is_one_line_and_code_1(tmp_path):
    processes = ran(2, steps(tmp_path, 1, "raise Fault('run_dir=/x: the disk is full')"))
    check(processes, tmp_path, 1, "exception", "run_dir=/x: the disk is full", 1)
    assert processes[1].err == "error: run_dir=/x: the disk is full\n"


def test_no_run_folder_no_record_and_a_full_disk_is_no_second_fault(tmp_path, capfd):
    fault = {"time": 0.0, "kind": "killed"}
    fault_log.append(None, fault)
    fault_log.append(tmp_path / "none", fault)
    (tmp_path / fault_log.FILE).symlink_to("/dev/full")
    fault_log.append(tmp_path, fault)
    assert "No space left" in capfd.readouterr().err


def test_a_line_that_was_cut_off_does_not_hide_the_others(tmp_path):
    fault_log.append(tmp_path, {"step": 1})
    with (tmp_path / fault_log.FILE).open("a") as file:
        file.write('{"step": 2, "mess\n')
    fault_log.append(tmp_path, {"step": 3})
    assert [fault["step"] for fault in fault_log.read(tmp_path)] == [1, 3]
