"""A signal to any process stops all of them at one step, whatever each is doing; before the first step they
leave wherever they are."""

from __future__ import annotations

import random
import signal
import time

import pytest

from llm_jax.core.errors import Stopped
from llm_jax.processes import signals
from llm_jax.processes.config import ClusterConfig
from llm_jax.processes.coordinator import Coordinator
from llm_jax.processes.group import alone
from llm_jax.processes.messages import BarrierBlocked, BlockBarrier, Message, StopAt, StopRequested
from llm_jax.processes.signals import StopBarrier
from tests.processes.launch_group import ended, started, wait_for

# A training loop: each step waits for all others as a collective does, in any order of arrival.
LOOP = """
dice = random.Random(rank)
group.mark("compile")
group.exchange("first step")
group.arm()
if rank == 0:
    report("going")
for step in range(1, 100_000):
    for place in ("train", "evaluate", "save"):
        group.mark(place, step)
        if dice.random() < 0.05:
            time.sleep(dice.random() * 0.02)
        if place == "train" or step % 7 == 0:
            group.exchange(place)
        if group.poll():
            report("stopped at", step, place, group.received, group.reason)
            time.sleep(0.2)
            sys.exit(0)
"""


def stopped_at(processes) -> list[str]:
    """Where each process stopped."""
    return [process.out.splitlines()[-1] for process in processes]


@pytest.mark.parametrize("seed", range(3))
def test_all_stop_at_the_same_tick_whichever_processes_receive_signals(seed):
    dice = random.Random(seed)
    with started(4, LOOP.replace("sys.exit(0)", "return 85")) as processes:
        wait_for(processes[0], "going")
        for _ in range(1 + seed):  # one signal on one process; then several at once on several
            time.sleep(dice.random() * 0.1)
            dice.choice(processes).send_signal(dice.choice([signal.SIGTERM, signal.SIGUSR1]))
        found = ended(processes)
    assert [process.code for process in found] == [85] * 4, found
    places = {line.split(" SIG")[0] for line in stopped_at(found)}
    assert len(places) == 1, places
    assert "stopped at" in places.pop()


def test_all_at_once_as_slurm_sends_it():
    with started(3, LOOP.replace("sys.exit(0)", "return 85")) as processes:
        wait_for(processes[0], "going")
        for process in processes:
            process.send_signal(signal.SIGTERM)
        found = ended(processes)
    assert [process.code for process in found] == [85] * 3
    assert len({line.split(" SIG")[0] for line in stopped_at(found)}) == 1
    # A process that receives another's request before its own signal names that other ("... at rank 2 on
    # HOST").
    assert all(f"{int(signal.SIGTERM)} SIGTERM" in line for line in stopped_at(found))


def test_the_others_name_the_process_that_received_the_signal():
    with started(2, LOOP.replace("sys.exit(0)", "return 85")) as processes:
        wait_for(processes[0], "going")
        processes[1].send_signal(signal.SIGUSR1)
        found = ended(processes)
    assert "SIGUSR1 at rank 1 on " in stopped_at(found)[0]
    assert stopped_at(found)[1].endswith("SIGUSR1")


# Like a compiler: Python's lock is free, and no signal reaches Python.
LIBRARY = "import ctypes; lock = ctypes.CDLL(None).pthread_mutex_lock"
LIBRARY += "; mutex = ctypes.create_string_buffer(64); lock(mutex); lock(mutex)"
STUCK = pytest.mark.parametrize(
    "stuck", ["time.sleep(60)", "while True: pass", LIBRARY], ids=["sleep", "python", "library"]
)


@STUCK
def test_before_the_first_step_all_leave_wherever_they_are(stuck):
    """Compiling takes minutes in a library that knows nothing of signals; there is nothing to save."""
    body = f"""
if rank == 0:
    report("going")
if rank == 1:
    {stuck}
else:
    group.exchange("first step")
"""
    with started(3, body) as processes:
        wait_for(processes[0], "going")
        time.sleep(0.2)
        processes[2].send_signal(signal.SIGTERM)
        found = ended(processes)
    assert [process.code for process in found] == [85] * 3, found
    assert "stopped by SIGTERM at rank 2 on" in found[0].err


@STUCK
def test_alone_it_leaves_too(stuck):
    with started(1, f"report('going')\n{stuck}") as processes:
        wait_for(processes[0], "going")
        time.sleep(0.2)
        processes[0].send_signal(signal.SIGUSR1)
        (process,) = ended(processes)
    assert process.code == 85
    assert "stopped by SIGUSR1 before a step was done, nothing is lost" in process.out + process.err


@pytest.mark.parametrize("where", ["before", "body"])
def test_a_stop_that_is_raised_where_python_drops_exceptions_is_raised_again(where):
    """JAX has a callback of the garbage collector, and a signal often comes in it while modules are
    imported."""
    busy = """
import gc
def spin(*_):
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        pass
gc.callbacks.append(spin)
report("going")
while True:
    gc.collect()
    spin()
"""
    with started(1, **{"body": "pass", where: busy}) as processes:
        wait_for(processes[0], "going")
        time.sleep(0.12)
        processes[0].send_signal(signal.SIGTERM)
        (process,) = ended(processes)
    assert process.code == 85
    assert "stopped by SIGTERM before a step was done" in process.out
    assert process.err == "", "the monitor thread had to end it, which it prints there"


def test_a_signal_before_the_rendezvous_ends_that_process():
    with started(
        2, "pass", before="if rank == 1:\n    report('going')\n    time.sleep(60)", start_seconds=3.0
    ) as processes:
        wait_for(processes[1], "going")
        processes[1].send_signal(signal.SIGUSR1)
        found = ended(processes)
    assert found[1].code == 85
    assert found[0].code == 1
    assert "rank 1 did not connect within" in found[0].err


def test_when_only_some_have_work_to_save_the_run_goes_on_to_a_poll():
    body = """
if rank == 1:
    report("going")
    time.sleep(1)
group.arm()
while not group.poll():
    group.exchange("step")
report("ticks", group.barrier.ticks)
"""
    with started(2, body) as processes:
        wait_for(processes[1], "going")
        time.sleep(0.3)
        processes[1].send_signal(signal.SIGTERM)
        found = ended(processes)
    assert [process.code for process in found] == [0, 0]
    assert stopped_at(found)[0] == stopped_at(found)[1]


def test_a_second_signal_changes_nothing_and_a_second_ctrl_c_ends_at_once():
    body = """
group.arm()
report("going")
while not group.poll():
    time.sleep(0.01)
report("saving")
time.sleep(1)
report("saved")
"""
    for first, second, code, last in (
        (signal.SIGUSR1, signal.SIGTERM, 0, "saved"),
        (signal.SIGTERM, signal.SIGTERM, 0, "saved"),
        (signal.SIGTERM, signal.SIGINT, 0, "saved"),
        (signal.SIGINT, signal.SIGINT, 130, "saving"),
    ):
        with started(1, body) as processes:
            wait_for(processes[0], "going")
            processes[0].send_signal(first)
            wait_for(processes[0], "saving")
            processes[0].send_signal(second)
            (process,) = ended(processes)
        assert process.code == code, (first, second, process)
        assert ("saved" in process.out) == (last == "saved")


def test_ctrl_c_stays_ignored_where_it_was_and_sigterm_is_taken():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as shells start what runs in the background
    try:
        with alone() as group:
            group.arm()
            signal.raise_signal(signal.SIGINT)
            assert not any(group.poll() for _ in range(100))
            signal.raise_signal(signal.SIGTERM)
            assert group.poll() == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_after_the_last_step_is_no_stop():
    body = "group.arm()\ngroup.poll()\nreport('going')\ntime.sleep(0.5)\ngroup.exchange('the end')"
    with started(2, body) as processes:
        wait_for(processes[0], "going")
        processes[0].send_signal(signal.SIGTERM)
        found = ended(processes)
    assert [process.code for process in found] == [0, 0]


def test_in_this_process_the_next_poll_has_the_signal_and_handlers_are_as_before():
    before = [signal.getsignal(number) for number in signals.HANDLED]
    with alone() as group:
        group.arm()
        for _ in range(100):
            assert group.poll() is None
        signal.raise_signal(signal.SIGTERM)
        assert group.received is None
        assert group.poll() == signal.SIGTERM
        assert group.received == signal.SIGTERM
        with pytest.raises(Stopped, match="stopped by SIGTERM") as caught:
            group.check()
        assert caught.value.code == 85
    assert [signal.getsignal(number) for number in signals.HANDLED] == before
    assert Stopped(signal.SIGINT).code == 130


def raise_and_wait(number: int) -> None:
    """Sends this process a signal and waits for what it does."""
    signal.raise_signal(number)
    time.sleep(10)


def test_before_arm_a_signal_is_raised_in_this_process():
    with alone(), pytest.raises(Stopped):
        raise_and_wait(signal.SIGTERM)


def test_after_disarm_a_signal_is_raised_in_this_process():
    with alone() as group:
        group.arm()
        group.disarm()
        with pytest.raises(Stopped):
            raise_and_wait(signal.SIGTERM)


def test_the_time_limit_stops_a_run_like_a_signal(monkeypatch):
    from llm_jax.processes import monitor

    now = time.time()
    ends = iter([now + 100.3, now + 100.8])  # the job was given more time meanwhile
    monkeypatch.setattr(monitor, "end_of_job", lambda job: next(ends, now + 100.8))
    monkeypatch.setattr(monitor, "LAST_PART", 1.0)
    with alone(ClusterConfig(stop_before_end_seconds=100.0)) as group:
        group.arm()
        while not group.poll():
            time.sleep(0.01)
        assert time.time() > now + 0.8
        assert group.received == signal.SIGUSR1
        assert group.reason == "the end of the job's time limit"


def test_a_short_job_has_most_of_its_time(monkeypatch):
    """A margin as long as the whole job would stop each of its starts before the first step."""
    from llm_jax.processes import monitor

    now = time.time()
    monkeypatch.setattr(monitor, "end_of_job", lambda job: now + 120.0)
    with alone(ClusterConfig(stop_before_end_seconds=120.0)) as group:
        assert group.monitor
        assert group.monitor.limit - time.monotonic() == pytest.approx(90, abs=5)
    with alone(ClusterConfig(stop_before_end_seconds=0.0)) as group:
        assert group.monitor
        assert group.monitor.limit == float("inf")


@pytest.mark.parametrize("seed", range(3))
def test_agreement_over_any_order_of_messages(seed):
    """The coordinator and the barriers alone, thousands of times: ticks pass, messages are late, signals come
    anywhere."""
    dice = random.Random(seed)
    for _ in range(300):
        size = dice.randint(1, 6)
        coordinator = Coordinator([""] * size, ClusterConfig(), {}, lambda fault: None, 0.0)
        barriers = [StopBarrier() for _ in range(size)]
        for barrier in barriers:
            barrier.armed = True
        to_coordinator: list[list[Message]] = [[] for _ in range(size)]
        to_barrier: list[list[Message]] = [[] for _ in range(size)]
        stopped: dict[int, int] = {}
        signals = dice.randint(1, 3)
        for _ in range(100_000):
            if len(stopped) == size:
                break
            rank, what = dice.randrange(size), dice.random()
            barrier = barriers[rank]
            if what < 0.01 and signals:
                signals -= 1
                to_coordinator[rank].append(StopRequested(15, "SIGTERM"))
            elif what < 0.3 and to_coordinator[rank]:
                coordinator.receive(rank, to_coordinator[rank].pop(0), 0.0)
                for to, message in coordinator.outbox:
                    to_barrier[to].append(message)
                coordinator.outbox = []
            elif what < 0.6 and to_barrier[rank]:
                message = to_barrier[rank].pop(0)
                if isinstance(message, BlockBarrier):
                    to_coordinator[rank].append(BarrierBlocked(*barrier.block()))
                else:
                    assert isinstance(message, StopAt)
                    barrier.stop_at(message.tick, message.signal, message.reason)
            elif rank not in stopped and (barrier.decided or not barrier.blocked):
                in_step = barrier.ticks <= min(
                    b.ticks for b in barriers
                )  # at most one tick ahead of another, as in collectives
                if in_step and barrier.poll():
                    stopped[rank] = barrier.ticks
        assert len(stopped) == size, "a process waits for ever"
        assert len(set(stopped.values())) == 1
