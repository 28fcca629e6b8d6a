"""Processes connect, exchange values and end together; one that is missing, late or of another run is
named."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import threading

import pytest

from llm_jax.processes.connection import Connection
from llm_jax.processes.group import alone
from llm_jax.processes.messages import EndForUserError, Goodbye, Message, decode
from tests.processes.launch_group import ROOT, ran


@pytest.mark.parametrize("size", [1, 2, 5])
def test_everyones_values_by_rank(size):
    body = """
for i in range(20):
    assert group.exchange("ranks", {"rank": rank, "i": i}) == [{"rank": r, "i": i} for r in range(size)]
group.exchange("large", "x" * 300_000)
report("done")
"""
    for process in ran(size, body):
        assert (process.code, process.out, process.err) == (0, "done\n", "")


def test_a_process_that_never_connects_is_named():
    for process in ran(3, "pass", ranks=[0, 2], start_seconds=1.5):
        assert process.code == 1
        assert process.err.startswith("error: rank 1 did not connect within 1.5 s (cluster.start_seconds)"), (
            process.err
        )
        assert process.err.count("\n") == 1


def test_rank_0_that_never_starts_is_named():
    (process,) = ran(2, "pass", ranks=[1], start_seconds=1.0)
    assert process.code == 1
    assert "rank 0 on 127.0.0.1 was not found within 1 s (cluster.start_seconds)" in process.err
    assert "Connection refused" in process.err
    assert process.err.count("\n") == 1


def test_a_process_that_ends_before_all_have_connected_is_named():
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
        assert "in phase data, step 3: did not reach 'corpus' within" in process.err
        assert process.err.count("\n") == 1


def test_processes_that_run_different_programs_are_told_apart():
    processes = ran(2, "group.exchange(f'place {rank}')")
    assert sorted(process.code for process in processes) == [1, 86]
    assert "is at 'place" in processes[0].err


def test_a_process_that_ends_while_others_wait_for_it_is_named():
    processes = ran(2, "if rank == 0:\n    group.exchange('corpus')")
    assert [process.code for process in processes] == [86, 1]
    assert "rank 1 on " in processes[0].err
    assert "has reached its end, while rank 0 on " in processes[0].err


def test_a_user_error_is_printed_once_and_ends_all():
    for who in (2, None):
        body = f"""
if {who} in (rank, None):
    raise UserError("mesh.data=3: doesn't divide")
time.sleep(30)
"""
        processes = ran(3, body)
        assert [process.code for process in processes] == [2, 2, 2]
        errors = "".join(process.err for process in processes)
        assert errors.count("mesh.data=3: doesn't divide\n") == 1, errors
        assert errors.startswith("error: rank 2 on" if who == 2 else "error: mesh")


def test_no_process_ends_before_all_have_reached_their_end():
    """A launcher may kill the rest soon after the first has ended."""
    body = """
import atexit
atexit.register(lambda: report(time.time()))
time.sleep(1.0 * (rank == 1))
if rank == 1:
    report(time.time())
"""
    first, second = ran(2, body)
    assert float(first.out) >= float(second.out.split()[0])


def test_other_programs_at_the_port_are_refused():
    """Another job's process, and something that isn't of this project at all."""
    before = """
if rank == 1:
    import json, socket
    from llm_jax.processes.messages import Hello
    host, port = os.environ["LLM_JAX_COORDINATOR"].split(":")
    for words in (Hello("other", 1, "x").encode(), b"GET / HTTP/1.1\\r\\n\\r\\n", b""):
        while True:
            try:
                client = socket.create_connection((host, int(port)))
                break
            except OSError:
                time.sleep(0.05)
        client.sendall(words)
        if words.startswith(b"{"):
            assert json.loads(client.recv(1000))["kind"] == "Refused"
        elif words:
            assert client.recv(1000) == b""
"""
    for process in ran(2, "report(group.exchange('ranks', rank))", before=before):
        assert (process.code, process.out, process.err) == (0, "[0, 1]\n", "")


def test_a_port_that_another_program_uses_is_skipped(monkeypatch):
    """Slurm's processes have several ports to try: rank 0 takes the next, the others find it there."""
    from llm_jax.processes import rendezvous
    from llm_jax.processes.launcher import LaunchedProcess

    taken = socket.create_server(("", 0))
    mute = taken.getsockname()[1]  # listens and sends nothing
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        free = s.getsockname()[1]
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.3)
    tasks = [
        LaunchedProcess(rank, 2, host=f"node{rank}", ports=(mute, free), launcher="slurm")
        for rank in range(2)
    ]
    connected = {}
    threads = [
        threading.Thread(
            target=lambda task=task: connected.update({task.rank: rendezvous.connect_all(task, 10)})
        )
        for task in tasks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken.close()
    for rank in range(2):
        hosts, connections = connected[rank]
        assert hosts == ["node0", "node1"]
        for connection in connections.values():
            connection.close()


def test_messages_that_came_before_a_connection_broke_are_read():
    ours, theirs = map(Connection, socket.socketpair())
    sent = [EndForUserError(1, "node1", "x" * 3_000), Goodbye()]
    for message in sent:
        theirs.send(message)
    theirs.close()
    ours.send(Goodbye())
    assert ours.closed
    assert ours.drain() == sent
    assert ours.drain() == []
    ours.close()


def example(kind: type[Message]) -> Message:
    """A message with a value for each field."""
    values = {
        "int": 3,
        "str": "x",
        "bool": True,
        "float": 0.5,
        "str | None": None,
        "float | None": 1.0,
        "Any": [1, {"a": None}],
    }
    values |= {"list[str]": ["a", "b"], "list[Any]": [1, "b"], "Record": {"kind": "killed", "rank": 2}}
    return kind(**{field.name: values[str(field.type)] for field in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", Message.kinds.values(), ids=list(Message.kinds))
def test_every_message_is_a_line_of_json_that_decodes_to_itself(kind):
    message = example(kind)
    line = message.encode()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert json.loads(line)["kind"] == kind.__name__
    assert decode(line) == message


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1",
        b"[1]",
        b"3",
        b"{}",
        b'{"kind": "Nothing"}',
        b'{"kind": "Goodbye", "x": 1}',
        b'{"kind": "Hello"}',
        b"\xff",
    ],
)
def test_what_is_no_message_closes_the_connection(line):
    ours, theirs = map(Connection, socket.socketpair())
    theirs.socket.sendall(line + b"\n")
    assert ours.receive() == []
    assert ours.closed
    for end in (ours, theirs):
        end.close()


def test_the_docs_list_every_message_with_its_fields():
    text = (ROOT / "docs" / "processes.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|([^|]*)\|", text, re.M))
    assert set(rows) == set(Message.kinds)
    for name, kind in Message.kinds.items():
        assert re.findall(r"`(\w+)`", rows[name]) == [field.name for field in dataclasses.fields(kind)], name


def test_alone_is_a_group_too():
    with alone() as group:
        assert group.exchange("values", {"a": 1}) == [{"a": 1}]
        assert group.poll() is None
        before = threading.active_count()
        json.dumps(group.task.rank)
    assert threading.active_count() == before - 1
