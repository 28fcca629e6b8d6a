"""A message is answered in the model's chat template, through the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llm_jax.data import load_tokenizer
from llm_jax.generate.__main__ import main
from tests.tiny_run import launch, write_experiment

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run of one step with the tokenizer and the template of a chat model."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = shutil.copytree(DATA / "chat_tokenizer", folder / "tokenizer")
    shutil.copy(DATA / "chat_templates" / "chatml.jinja", tokenizer / "chat_template.jinja")
    line = [
        f"experiment={write_experiment(folder)}",
        f"tokenizer.file={tokenizer}",
        f"run_dir={folder / 'run'}",
    ]
    assert launch(*line, "train.steps=1") == 0
    return folder / "run"


def ids_of(run_dir: Path, text: str) -> list[int]:
    return load_tokenizer(run_dir / "tokenizer").encode_with_control(text)


def test_a_message_is_put_into_the_template_and_only_the_answer_is_printed(run_dir, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main([str(run_dir), "chat=What <|im_end|> is it?", "max_tokens=3", f"json={out}"]) == 0
    result = json.loads(out.read_text())
    typed = len(load_tokenizer(run_dir / "tokenizer").encode("<|im_end|>"))
    assert typed > 1  # it stays text
    rest = len(ids_of(run_dir, "<|im_start|>user\nWhat  is it?<|im_end|>\n<|im_start|>assistant\n"))
    assert abs(result["prompt_tokens"] - rest - typed) <= 1  # spaces may join otherwise
    assert result["ids"].count(ids_of(run_dir, "<|im_end|>")[0]) == 1
    assert capsys.readouterr().out == result["text"] + "\n"


def test_a_conversation_of_a_file_equals_the_prompt_with_control_tokens(run_dir, tmp_path, capsys):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    text = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    out = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    ids = ",".join(map(str, ids_of(run_dir, text)))
    assert main([str(run_dir), f"prompts={tmp_path / 'p.jsonl'}", "max_tokens=4", f"json={out[0]}"]) == 0
    assert main([str(run_dir), f"ids={ids}", "max_tokens=4", f"json={out[1]}"]) == 0
    one, two = (json.loads(path.read_text()) for path in out)
    assert one["tokens"] == two["tokens"]
    assert one["ids"] == two["ids"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"messages": []}, "line 1: messages must be a text, or messages like"),
        ({"messages": [{"content": "a"}]}, "line 1: messages has a message without a role"),
        (
            {"messages": [{"role": "user", "content": "a"}], "prompt": "b"},
            "prompt=b: the request has messages too",
        ),
    ],
)
def test_a_conversation_that_is_none_is_one_line(run_dir, tmp_path, capsys, lines, message):
    (tmp_path / "p.jsonl").write_text(json.dumps(lines) + "\n")
    assert main([str(run_dir), f"prompts={tmp_path / 'p.jsonl'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_model_without_a_template_is_named(tmp_path, capsys):
    line = [f"experiment={write_experiment(tmp_path)}", f"run_dir={tmp_path / 'run'}", "train.steps=1"]
    assert launch(*line) == 0
    capsys.readouterr()
    assert main([str(tmp_path / "run"), "chat=hello"]) == 2
    error = capsys.readouterr().err
    assert "chat template=: " in error
    assert "use prompt=, or train it to answer first" in error
