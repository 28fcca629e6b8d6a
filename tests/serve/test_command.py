"""The command: its mistakes are one line and exit code 2; served, it ends clean."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llm_jax.serve import __main__ as command
from tests.tiny_run import ROOT, launch, write_experiment


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    return made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing/here"], "nothing/here: no such folder"),
        (["port=8000"], "RUN_OR_FOLDER is missing"),
        (["FOLDER", "prot=8000"], "there is no key 'prot', and no folder '8000'"),
        (["FOLDER", "prot=8000"], "did you mean 'port'?"),
        (
            ["FOLDER", "host=0.0.0.0"],
            "host=0.0.0.0: other machines reach it, and it needs a token of your own",
        ),
        (["FOLDER", "host=node3", "port=0"], "Give token=@FILE"),
        (["FOLDER", "token=short"], "token=...: must be at least 16 letters"),
        (["FOLDER", "token=@/nothing"], "token=@/nothing: can't be read"),
        (["FOLDER", "port=70000"], "port=70000: must be"),
        (["FOLDER", "port=1", "socket=/tmp/a/b"], "the server listens at a port or a socket"),
        (["FOLDER", "run=FOLDER"], "run: two models have this name"),
        (["FOLDER", "b=FOLDER", "step=3"], "step=3: is for one model"),
        (["FOLDER", "slots=0"], "slots=0: must be"),
        (["FOLDER", "max_tokens=1"], "max_tokens=1: must be"),
        (["FOLDER", "drain=-1"], "drain=-1: must be"),
    ],
)
def test_a_mistake_is_one_line(folder, arguments, message, capsys):
    assert command.main([word.replace("FOLDER", str(folder)) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_port_in_use_is_named_before_anything_is_opened(extra, folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command.main([str(folder), f"port={port}"]) == 2
    assert f"port={port}: another process listens there" in capsys.readouterr().err


def test_a_folder_without_a_model_ends_the_server_with_its_line(extra, folder, tmp_path, capsys):
    file = tmp_path / "t" / "token"
    assert command.main([str(folder), "port=0", f"token_file={file}"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith(f"error: {folder}: ")
    assert not file.exists()


def test_the_extra_is_named_where_it_is_missing(folder, monkeypatch, capsys):
    monkeypatch.setattr(command, "NEEDS", ("no_such_package",))
    assert command.main([str(folder)]) == 2
    assert "pip install 'llm_jax[serve]'" in capsys.readouterr().err


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path):
        super().__init__("localhost", timeout=120)
        self.path = path

    def connect(self) -> None:
        """Connects to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self.path))


@pytest.mark.slow
def test_a_run_is_served_at_a_socket_until_sigterm(extra, tmp_path):
    run, path = tmp_path / "run", tmp_path / "own" / "s.sock"
    assert launch(f"experiment={write_experiment(tmp_path)}", f"run_dir={run}", "train.steps=1") == 0
    words = [str(run), f"again={run}", f"socket={path}", "slots=2", "max_tokens=64"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "llm_jax.serve", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0].startswith("serves run, again: http://localhost/#token=")
        assert f"ssh -L 8000:{path} " in lines[2]
        file = path.with_name("s.sock.token")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        token = file.read_text().strip()
        assert token in lines[0]
        connection = UnixConnection(path)
        body = {"model": "again", "prompt": "def ", "max_tokens": 40, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        assert response.status == 200
        process.send_signal(signal.SIGTERM)
        assert response.read().decode().endswith("data: [DONE]\n\n")
        assert process.wait(60) == 0
        assert not path.exists()
        assert not file.exists()
