"""Processes meet, exchange values and end together; one that is missing, late or of another run is named."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from llm_jax.processes.connection import Link
from llm_jax.processes.group import alone
from tests.cluster.processes import ran


@pytest.mark.parametrize("size", [1, 2, 5])
def test_everyones_values_by_rank(size):
    body = """
for i in range(20):
    assert group.exchange("ranks", {"rank": rank, "i": i}) == [{"rank": r, "i": i} for r in range(size)]
group.exchange("large", "x" * 300_000)
say("done")
"""
    for process in ran(size, body):
        assert (process.code, process.out, process.err) == (0, "done\n", "")


def test_a_process_that_never_came_is_named():
    for process in ran(3, "pass", ranks=[0, 2], start_seconds=1.5):
        assert process.code == 1
        assert process.err.startswith("error: rank 1 did not come within 1.5 s (cluster.start_seconds)"), process.err
        assert process.err.count("\n") == 1


def test_rank_0_that_never_came_is_named():
    (process,) = ran(2, "pass", ranks=[1], start_seconds=1.0)
    assert process.code == 1
    assert "rank 0 on 127.0.0.1 was not found within 1 s (cluster.start_seconds)" in process.err
    assert "Connection refused" in process.err
    assert process.err.count("\n") == 1


def test_a_process_that_ends_before_all_have_met_is_named():
    processes = ran(3, "pass", before="if rank == 1:\n    sys.exit(7)", start_seconds=2.0)
    assert [process.code for process in processes] == [1, 7, 1]
    assert "rank 1" in processes[0].err
    assert "rank 1" in processes[2].err


def test_a_late_process_is_named_by_all_and_ends_too():
    body = """
if rank == 1:
    group.mark("data", 3)
    time.sleep(30)
group.exchange("corpus", seconds=1.5)
"""
    processes = ran(3, body)
    assert [process.code for process in processes] == [86, 1, 86]
    for process in processes:
        assert "in phase data, step 3: did not come to 'corpus' within" in process.err
        assert process.err.count("\n") == 1


def test_processes_that_run_different_programs_are_told_apart():
    processes = ran(2, "group.exchange(f'place {rank}')")
    assert sorted(process.code for process in processes) == [1, 86]
    assert "is at 'place" in processes[0].err


def test_a_process_that_ends_while_others_wait_for_it_is_named():
    processes = ran(2, "if rank == 0:\n    group.exchange('corpus')")
    assert [process.code for process in processes] == [86, 1]
    assert "rank 1 on " in processes[0].err
    assert "has come to its end, while rank 0 on " in processes[0].err


def test_a_mistake_of_the_user_is_told_once_and_ends_all():
    for who in (2, None):
        body = f"""
if {who} in (rank, None):
    raise UserError("mesh.data=3: doesn't divide")
time.sleep(30)
"""
        processes = ran(3, body)
        assert [process.code for process in processes] == [2, 2, 2]
        told = "".join(process.err for process in processes)
        assert told.count("mesh.data=3: doesn't divide\n") == 1, told
        assert told.startswith("error: rank 2 on" if who == 2 else "error: mesh")


def test_no_process_ends_before_all_have_come_to_their_end():
    """A launcher may kill the rest soon after the first has ended."""
    body = "import atexit; atexit.register(lambda: say(time.time()))\ntime.sleep(1.0 * (rank == 1))\nif rank == 1:\n    say(time.time())"
    first, second = ran(2, body)
    assert float(first.out) >= float(second.out.split()[0])


def test_strangers_at_the_port_are_turned_away():
    """Another job's process, and something that isn't of this project at all."""
    before = """
if rank == 1:
    import json, socket
    host, port = os.environ["LLM_JAX_COORDINATOR"].split(":")
    for words in (b'{"kind": "hello", "token": "other", "rank": 1, "host": "x"}\\n', b"GET / HTTP/1.1\\r\\n\\r\\n", b""):
        while True:
            try:
                stranger = socket.create_connection((host, int(port)))
                break
            except OSError:
                time.sleep(0.05)
        stranger.sendall(words)
        if words.startswith(b"{"):
            assert json.loads(stranger.recv(1000))["kind"] == "refused"
        elif words:
            assert stranger.recv(1000) == b""
"""
    for process in ran(2, "say(group.exchange('ranks', rank))", before=before):
        assert (process.code, process.out, process.err) == (0, "[0, 1]\n", "")


def test_a_port_that_another_program_has_is_passed_over(monkeypatch):
    """Slurm's processes have several ports to try: rank 0 takes the next, the others find it there."""
    from llm_jax.processes import rendezvous
    from llm_jax.processes.launcher import Task

    taken = socket.create_server(("", 0))
    mute = taken.getsockname()[1]  # listens and says nothing
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        free = s.getsockname()[1]
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.3)
    tasks = [Task(rank, 2, host=f"node{rank}", ports=(mute, free), launcher="slurm") for rank in range(2)]
    met = {}
    threads = [threading.Thread(target=lambda task=task: met.update({task.rank: rendezvous.meet(task, 10)})) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken.close()
    for rank in range(2):
        hosts, links = met[rank]
        assert hosts == ["node0", "node1"]
        for link in links.values():
            link.close()


def test_words_that_came_before_a_connection_broke_are_read():
    ours, theirs = map(Link, socket.socketpair())
    theirs.send({"kind": "fault", "why": "x" * 3_000})
    theirs.send({"kind": "bye"})
    theirs.close()
    ours.send({"kind": "beat"})
    assert ours.closed
    assert [message["kind"] for message in ours.rest()] == ["fault", "bye"]
    assert ours.rest() == []
    ours.close()


def test_alone_is_a_group_too():
    with alone() as group:
        assert group.exchange("values", {"a": 1}) == [{"a": 1}]
        assert group.poll() is None
        before = threading.active_count()
        json.dumps(group.task.rank)
    assert threading.active_count() == before - 1
