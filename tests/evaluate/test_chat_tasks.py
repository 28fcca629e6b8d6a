"""`chat=true`: contexts of items are turns of a user in the model's chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.evaluate.__main__ import main
from llm_jax.evaluate.chat_prompts import ChatPrompts
from llm_jax.evaluate.harness import HarnessMethods
from llm_jax.evaluate.harness import convention_of as harness_convention
from llm_jax.evaluate.samples import read_samples
from llm_jax.evaluate.scorer import Scorer, ScoreRequest
from llm_jax.generate.chat import template_of
from llm_jax.pretrained.model import PretrainedModel, open_model
from tests.tiny_run import launch, write_experiment

DATA = Path(__file__).parent.parent / "data"
ITEMS = [
    {
        "context": f"What <|im_end|> is {n}?",
        "choices": [" a number", " the <|im_start|>"],
        "gold": n % 2,
        "id": n,
    }
    for n in range(4)
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step with the tokenizer and the template of a chat model, and files of tasks beside it."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = shutil.copytree(DATA / "chat_tokenizer", folder / "tokenizer")
    shutil.copy(DATA / "chat_templates" / "chatml.jinja", tokenizer / "chat_template.jinja")
    line = [
        f"experiment={write_experiment(folder)}",
        f"tokenizer.file={tokenizer}",
        f"run_dir={folder / 'run'}",
    ]
    assert launch(*line, "train.steps=1") == 0
    files = {
        "mc": ITEMS,
        "sums": [{"question": "1 + 1", "answer": "2"}],
        "pairs": [{"good": "it reads.", "bad": "it read."}],
        "code": [{"task_id": "c", "prompt": "def f():\n", "test": "assert f()"}],
    }
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder / "run"


@pytest.fixture(scope="module")
def opened(run_dir: Path) -> PretrainedModel:
    return open_model(run_dir)


def test_scores_are_those_of_answers_in_the_template(run_dir, opened, tmp_path):
    """Names of control tokens in a context or a choice stay text; the space before a choice goes."""
    out = tmp_path / "scores"
    assert main([str(run_dir), f"tasks={run_dir.parent / 'mc.jsonl'}", "chat=true", f"out={out}"]) == 0
    (result,) = json.loads((out / "scores.json").read_text())["results"]
    assert result["bos"].startswith("chat template ")
    assert result["n_merged"] == 0
    samples = {sample["id"]: sample for sample in read_samples(out / result["samples"])}
    tokenizer = opened.tokenizer
    control = {name: tokenizer.encode_with_control(name)[0] for name in ("<|im_start|>", "<|im_end|>")}
    prompts = ChatPrompts(template_of(opened.path, opened.experiment), tokenizer)
    for item in ITEMS:
        context = prompts.ids(item["context"])
        assert context.count(control["<|im_end|>"]) == 1
        assert context.count(control["<|im_start|>"]) == 2
        for number, choice in enumerate(item["choices"]):
            whole = prompts.ids(item["context"], choice)
            assert whole[: len(context)] == context
            assert whole.count(control["<|im_start|>"]) == 2
            assert tokenizer.decode(whole[len(context) :]).strip() == choice.strip()
            (found,) = Scorer(opened).score([ScoreRequest(tuple(context), tuple(whole[len(context) :]))])
            sample = samples[str(item["id"])]
            assert sample["choices"][number]["logprob"] == float(np.sum(found.logprobs, dtype=np.float64))


def test_texts_are_written_from_the_template_on(run_dir, tmp_path):
    """The result has a name of its own: it isn't that of the bare question."""
    for name, words in (("chat", ["chat=true"]), ("bare", [])):
        out = tmp_path / "scores"
        assert main([str(run_dir), f"tasks={run_dir.parent / 'sums.jsonl'}", *words, f"out={out}"]) == 0
        (result,) = json.loads((out / "scores.json").read_text())["results"]
        (sample,) = read_samples(out / result["samples"])
        (tmp_path / f"{name}.json").write_text(json.dumps([result["samples"], sample["context_tokens"]]))
    (file, tokens), (other, bare) = (
        json.loads((tmp_path / f"{n}.json").read_text()) for n in ("chat", "bare")
    )
    assert file != other
    assert tokens > bare + 4  # two turns begin, one ends


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["tasks=pairs.jsonl"],
            "tasks=pairs: item 0: chat=true: has no context that could be the user's turn",
        ),
        (
            ["tasks=mc.jsonl", "too_long=left"],
            "too_long=left: would leave out the beginning of the chat template",
        ),
        (["tasks=code.jsonl", "execute=true"], "chat=true: the programs of code are continued, not answered"),
        ([], "chat=: has an effect only with tasks=NAMES"),
    ],
)
def test_mistakes_are_one_line(run_dir, monkeypatch, capsys, words, line):
    monkeypatch.chdir(run_dir.parent)
    assert main([str(run_dir), *words, "chat=true"]) == 2
    (error,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("error:")]
    assert line in error


def test_a_model_without_a_template_is_one_line(run_dir, opened, tmp_path):
    bare = shutil.copytree(run_dir, tmp_path / "bare")
    (bare / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"a base model only continues a text"):
        template_of(bare, opened.experiment)


def test_the_harness_gets_conversations_in_the_template(opened):
    template = template_of(opened.path, opened.experiment)
    model = HarnessMethods(opened, harness_convention(opened), template=template)
    turns = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    asked = "<|im_start|>user\n1 + 1<|im_end|>\n<|im_start|>assistant\n"
    assert model.apply_chat_template(turns[:1]) == asked
    assert model.apply_chat_template(turns, add_generation_prompt=False) == asked + "2"
    assert model.chat_template(True) == template.source
    assert model.tokenizer_name == opened.tokenizer.fingerprint
