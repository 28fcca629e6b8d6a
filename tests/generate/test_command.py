"""The command as a user runs it, on a run of the smallest experiment."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.generate.__main__ import main, read_prompts
from llm_jax.run import run
from tests.tiny_run import launch, write_experiment


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    path = write_experiment(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "device_peak", lambda mesh, dtype, processes=1: 1e11)
        assert launch(f"experiment={path}", f"run_dir={folder / 'run'}", "train.steps=2") == 0
    return folder / "run"


PROMPT_FILES = {
    "mark.txt": (b"\xef\xbb\xbfone\r\ntwo\r\n", [{"prompt": "one"}, {"prompt": "two"}]),
    "mark.jsonl": (b'\xef\xbb\xbf{"prompt": "one"}\n\n{"prompt": "two"}\n', [{"prompt": "one"}, {"prompt": "two"}]),
    "array.jsonl": (b'[{"prompt": "one"},\n{"prompt": "two"}]\n', r"line 1: not JSON: it begins an array; jq -c '\.\[\]'"),
    "pretty.jsonl": (b'{\n"prompt": "one"}\n', r"line 1: not JSON: .*each line must hold one object: jq -c \."),
    "list.jsonl": (b'["one"]\n', r'line 1: must be an object with "prompt"'),
    "twice.jsonl": (b'{"prompt": "one", "prompt": "two"}\n', r"line 1: not JSON: 'prompt' is given twice"),
    "prompts.json": (b'["one",\n"two"]\n', r"prompts\.json: must be text with a prompt a line, or \.jsonl"),
    "prompts.csv": (b"prompt\none\n", r"prompts\.csv: must be text with a prompt a line, or \.jsonl"),
    "blank.jsonl": (b"\n\n", r"blank\.jsonl: must be a file with a prompt a line"),
    "wide.txt": ("one\n".encode("utf-16"), r"wide\.txt: is UTF-16; convert it to UTF-8"),
    "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\n", r"pointer\.txt: is a pointer of Git LFS"),
    "prompts.txt.gz": (b"\x1f\x8b\x08\x00", r"prompts\.txt\.gz: is compressed by gzip; unpack it"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPT_FILES)
def test_files_of_prompts_as_other_programs_write_them_are_read_or_named(tmp_path, name):
    content, expected = PROMPT_FILES[name]
    (tmp_path / name).write_bytes(content)
    if isinstance(expected, list):
        assert read_prompts(str(tmp_path / name)) == expected
        return
    with pytest.raises(UserError, match=expected) as error:
        read_prompts(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_prompts_are_read_from_a_pipe(tmp_path):
    """As in prompts=<(head -5 all.txt)."""
    os.mkfifo(pipe := tmp_path / "pipe")
    writer = threading.Thread(target=pipe.write_text, args=("one\ntwo\n",))
    writer.start()
    assert read_prompts(str(pipe)) == [{"prompt": "one"}, {"prompt": "two"}]
    writer.join()
    with pytest.raises(UserError, match="is a folder"):
        read_prompts(str(tmp_path))


def test_prompts_are_continued_in_order_and_written_as_json(run_dir, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    settings = ["max_tokens=12", "temperature=0.9", "top_k=40", "seed=3", "logprobs=2", "slots=1"]
    assert main([str(run_dir), "prompt=the é", "prompt=", f"json={out}", *settings]) == 0
    printed, stderr = capsys.readouterr()
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["prompt"] for r in results] == ["the é", ""]
    assert [r["seed"] for r in results] == [3, 4]
    assert f"--- 1 of 2\nthe é{results[0]['text']}\n" in printed
    assert f"--- 2 of 2\n{results[1]['text']}\n" in printed
    for result in results:
        assert len(result["tokens"]) == len(result["logprobs"]) == len(result["top"]) == 12
        assert all(
            logprob <= top[0][1] for logprob, top in zip(result["logprobs"], result["top"], strict=True)
        )
    assert "compiled prefill: 1 x 16 positions" in stderr
    assert "tokens/s; first token after" in stderr.splitlines()[-1]

    assert (
        main([str(run_dir), "prompt=", "seed=4", *settings[:3], "slots=1"]) == 0
    )  # alone: the text it had beside the other
    assert capsys.readouterr().out == results[1]["text"] + "\n"


def test_a_stop_string_ends_the_text_and_is_not_shown(run_dir, tmp_path, capsys):
    assert main([str(run_dir), "prompt=the", "temperature=0", "max_tokens=8"]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    cut = text[5:7]
    assert main([str(run_dir), "prompt=the", "temperature=0", "max_tokens=8", f"stop={cut}"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == text[: text.index(cut, 3)]


def test_each_prompt_of_a_file_can_have_its_own_settings(run_dir, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"prompt": "x\xe2\x80\xa8y", "max_tokens": 2}\r\n{"ids": [1, 30, 31], "temperature": 0, "stop": '
        b'["q"]}\n'
    )
    out = tmp_path / "out.jsonl"
    assert main([str(run_dir), f"prompts={tmp_path / 'a.jsonl'}", "max_tokens=3", f"json={out}"]) == 0
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first["prompt"] == "x\u2028y"
    assert (len(first["tokens"]), second["ids"], second["temperature"], second["stop"]) == (
        2,
        [1, 30, 31],
        0,
        ["q"],
    )
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    assert main([str(run_dir), f"prompts={tmp_path / 'latin.txt'}"]) == 2
    assert "latin.txt: is no text in UTF-8 (byte 0)" in capsys.readouterr().err
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n{"prompt": "x", "top_p": 2}')
    assert main([str(run_dir), f"prompts={tmp_path / 'a.jsonl'}"]) == 2
    assert "a.jsonl: line 2: top_p=2.0: must be above 0" in capsys.readouterr().err


def test_a_model_without_a_tokenizer_takes_ids_and_writes_ids(tmp_path, capsys):
    """The ids are those of transformers' greedy continuations, up to the EOS that the folder's JSON files
    name."""
    fixture = Path(__file__).parent.parent / "huggingface" / "fixtures" / "llama"
    expected = np.load(fixture / "expected.npz")
    folder, eos = tmp_path / "model", int(expected["left_greedy_new_tokens"][1, 5])
    shutil.copytree(fixture, folder)
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_text(
            json.dumps(json.loads((folder / name).read_text()) | {"eos_token_id": [eos]})
        )
    prompts = [
        ids[mask == 1].tolist()
        for ids, mask in zip(expected["left_input_ids"], expected["left_mask"], strict=True)
    ]
    given = ["ids=" + ",".join(map(str, prompt)) for prompt in prompts]
    out = tmp_path / "out.jsonl"
    assert main([str(folder), *given, "temperature=0", "max_tokens=32", "dtype=float32", f"json={out}"]) == 0
    printed = capsys.readouterr().out
    for line, prompt, theirs in zip(
        out.read_text().splitlines(), prompts, expected["left_greedy_new_tokens"].tolist(), strict=True
    ):
        tokens, length = json.loads(line)["tokens"], theirs.index(eos) + 1 if eos in theirs else 32
        assert tokens == theirs[:length]
        assert " ".join(map(str, [*prompt, *(i for i in tokens if i != eos)])) in printed
    assert json.loads(line)["finished"] == "eos"
    for arguments, expected_error in {
        "prompt=x": "prompt=x: {}: has no tokenizer; put its tokenizer.json (or SentencePiece's "
        "tokenizer.model) there, or give ids=1,2,3",
        "ids=5,83": "ids=83: must be from 0 to 82",
        "ids=5;6": "ids=5;6: must be token ids with commas between them",
    }.items():
        assert main([str(folder), arguments]) == 2
        assert expected_error.format(folder) in capsys.readouterr().err


MISTAKES = {
    "nothing/there": "nothing/there: no such folder",
    "RUN prompts=none.txt": "prompts=none.txt: no such file",
    "RUN temprature=1": "temprature=1: there is no key 'temprature'; did you mean 'temperature'?",
    "RUN temperature=-1": "temperature=-1.0: must be 0 (always the most likely token) or more",
    "RUN top_p=0": "top_p=0.0: must be above 0",
    "RUN top_k=x": "top_k=x: must be a whole number",
    "RUN top_k=3000000000": "top_k=3000000000: must be a number of tokens",
    "RUN seed=-1": "seed=-1: must be from 0 to",
    "RUN logprobs=21": "logprobs=21: must be from 0 to 20",
    "RUN max_tokens=0": "max_tokens=0: must be at least 1",
    "RUN slots=0": "slots=0: must be a whole number, at least 1",
    "RUN seed=1 seed=2": "seed=2: seed is given twice",
    "RUN layout=fsdq": "layout=fsdq: must be one of",
    "RUN mesh.tensor=2": "mesh.tensor=2: must be given together with a layout; add layout=NAME",
    "RUN dtype=int8": "dtype=int8: must be one of float32, bfloat16",
    "RUN step=99": "step=99: ",
    "prompt=x": "RUN_OR_FOLDER is missing",
    "RUN stop=": "stop=: must be some text",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(run_dir, line, capsys):
    assert main([str(run_dir) if word == "RUN" else word for word in line.split(" ")]) == 2
    printed, stderr = capsys.readouterr()
    assert MISTAKES[line] in stderr
    assert stderr.count("\n") == 1
    assert not printed
