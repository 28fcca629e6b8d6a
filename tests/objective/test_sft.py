"""Supervised fine-tuning as a user starts it: from a model with a chat template, on records of conversations."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from llm_jax.core.files import read_json_lines
from llm_jax.data import TokenizerConfig
from llm_jax.data.chat_encoder import prompt_ids
from llm_jax.data.chat_template import CHATML, find_template
from llm_jax.experiment import read_yaml, to_yaml
from llm_jax.run.show_data import main as show_data
from tests.data.test_chat import folder, tokenizer  # noqa: F401  (fixtures)
from tests.tiny_run import documents, launch, write_experiment

LAST_TURN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}now {% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template that writes the last turn otherwise than earlier ones."""


@pytest.fixture(scope="module")
def base(folder, tmp_path_factory) -> Path:  # noqa: F811
    """A run of one step with the tokenizer of a chat model."""
    path = tmp_path_factory.mktemp("base")
    assert (
        launch(
            f"experiment={write_experiment(path)}",
            f"tokenizer.file={folder}",
            f"run_dir={path / 'run'}",
            "train.steps=1",
        )
        == 0
    )
    chats = [
        {
            "messages": [
                {"role": "user", "content": text[:20]},
                {"role": "assistant", "content": text[20:40]},
            ]
            * (1 + i % 2)
        }
        for i, text in enumerate(documents(120))
    ]
    chats[7] = {"prompt": "a b c " * 100, "completion": "d"}
    (path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return path


@pytest.fixture
def sft(base, tmp_path):
    def run(name: str, *arguments: str, code: int = 0) -> list[dict]:
        line = [
            f"from={base / 'run'}",
            f"data.source={base / 'chats.jsonl'}",
            f"run_dir={tmp_path / name}",
            "train.steps=6",
        ]
        sizes = [
            "train.batch_size=8",
            "train.sequence_length=128",
            "optimizer.learning_rate=1e-2",
            "evaluate.every=6",
            "evaluate.base_batches=0",
            "sample.tokens=0",
        ]
        assert launch("experiment=sft", *line, *sizes, *arguments) == code
        return read_json_lines(tmp_path / name / "metrics.jsonl") if code == 0 else []

    return run


def values(metrics: list[dict], name: str) -> np.ndarray:
    return np.array([line[name] for line in metrics if name in line])


def test_it_learns_to_answer_and_agrees_with_one_device(sft, capsys):
    one = sft("one", "layout=single")
    assert (
        "1 of 120 examples are left out: longer than a row (train.sequence_length); the first is chats.jsonl:8"
        in capsys.readouterr().out
    )
    assert values(one, "train_loss")[-1] < values(one, "train_loss")[0] - 0.2
    many = sft("many", "layout=fsdp_tensor", "mesh.data=4", "mesh.tensor=2", "train.microbatches=2")
    np.testing.assert_allclose(values(many, "train_loss"), values(one, "train_loss"), rtol=1e-5)
    np.testing.assert_allclose(values(many, "eval_loss"), values(one, "eval_loss"), rtol=1e-5)


@pytest.mark.slow  # tests/objective/test_distill.py has teachers
def test_a_teacher_is_learned_from_where_sft_trains(sft, base):
    """Conversations of distillation are those of `sft`; a student that starts as its teacher differs in nothing."""
    plain = sft("plain", "layout=single", "train.steps=1")
    words = ("objective=distill", "objective.records=conversations", f"teacher={base / 'run'}")
    taught = sft("taught", "layout=single", "train.steps=1", *words)
    assert [line["batch_sha"] for line in taught if "batch_sha" in line] == [
        line["batch_sha"] for line in plain if "batch_sha" in line
    ]
    for name in ("loss_weight", "cross_entropy"):
        assert values(taught, name).tolist() == pytest.approx(values(plain, name).tolist(), rel=1e-6)
    assert abs(values(taught, "train_loss")[0]) < 1e-6


def test_only_what_is_asked_for_counts(sft):
    assistant, everything, last = (
        values(sft(name, "layout=single", f"data.train_on={name}", "train.steps=1"), "loss_weight")[0]
        for name in ("assistant", "all", "last_turn")
    )
    assert last < assistant < everything / 2


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("chat.template=nowhere.jinja", "chat.template=nowhere.jinja: no such file"),
        (
            "data.train_on=user",
            "data.train_on=user: must be one of assistant, completion, last_turn, all",
        ),
        ("data.source=stdlib", "data.source=stdlib: this objective reads records, not texts"),
        ("objective.template=chatml", "objective.template=chatml: was renamed. Use chat.template=chatml"),
        ("data.text_key=a", "data.text_key=a: has an effect only with an objective that reads texts"),
        ("data.too_long=error", "chats.jsonl:8: has"),
    ],
)
def test_a_mistake_is_one_line(sft, tmp_path, capsys, argument, message):
    capsys.readouterr()
    sft("wrong", "layout=single", argument, code=2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "wrong" / "checkpoints").exists()


def test_a_model_with_a_tokenizer_of_its_own_gets_the_tokens_of_a_template(base, tmp_path, capsys):
    """From a run whose tokenizer was trained here, to a model that answers and stops."""
    from llm_jax.generate.__main__ import main as generate
    from llm_jax.pretrained.model import open_model
    from llm_jax.pretrained.save import main as save

    (tmp_path / "mine.jinja").write_text(CHATML)
    start = [f"experiment={write_experiment(tmp_path)}", f"run_dir={tmp_path / 'own'}", "train.steps=1"]
    assert launch(*start) == 0
    line = [
        "experiment=sft",
        f"from={tmp_path / 'own'}",
        f"data.source={base / 'chats.jsonl'}",
        f"chat.template={tmp_path / 'mine.jinja'}",
    ]
    sizes = [
        "train.batch_size=8",
        "train.sequence_length=128",
        "optimizer.learning_rate=1e-2",
        "train.steps=4",
        "evaluate.base_batches=0",
        "sample.tokens=0",
    ]
    capsys.readouterr()
    assert launch(*line, *sizes, f"run_dir={tmp_path / 'sft'}") == 2
    assert "tokenizer.control" in capsys.readouterr().err
    control = 'tokenizer.control=["<|im_start|>", "<|im_end|>"]'
    layout = ["layout=fsdp_tensor", "mesh.data=4", "mesh.tensor=2"]
    assert launch(*line, *sizes, *layout, control, f"run_dir={tmp_path / 'sft'}") == 0
    assert "vocabulary of 320 -> 322: new rows are the mean of the others" in capsys.readouterr().out
    (tmp_path / "mine.jinja").unlink()  # the run folder has a copy
    assert (tmp_path / "sft" / "tokenizer" / "chat_template.jinja").read_text() == CHATML
    before, after = open_model(tmp_path / "own"), open_model(tmp_path / "sft")
    assert after.tokenizer.vocab_size == after.config.vocab == before.config.vocab + 2
    assert after.tokenizer.eos_ids == (*before.tokenizer.eos_ids, 321)
    assert (
        launch(*line, *sizes, *layout, control, f"run_dir={tmp_path / 'sft'}", "train.steps=5") == 0
    )  # resumed
    assert generate([str(tmp_path / "sft"), "chat=hello", "max_tokens=3"]) == 0
    # What a command line asks for is shown, whatever the run in its run_dir was trained with.
    (tmp_path / "other.jinja").write_text(CHATML.replace("+ message['role']", "+ 'other'"))
    shown = [*line[:-1], control, "examples=1", f"run_dir={tmp_path / 'sft'}"]
    for template, role in (("mine", "user"), ("other", "other")):
        capsys.readouterr()
        assert show_data([*shown, f"chat.template={tmp_path / template}.jinja"]) == 0
        assert f"<|im_start|>{role}↵" in capsys.readouterr().out
    own = ["experiment=sft", f"from={tmp_path / 'sft'}", f"data.source={base / 'chats.jsonl'}"]
    assert launch(*own, *sizes, "layout=single", "train.steps=1", f"run_dir={tmp_path / 'more'}") == 0
    assert generate([str(tmp_path / "more"), "chat=hello", "max_tokens=3"]) == 0
    assert save([str(tmp_path / "sft"), str(tmp_path / "exported")]) == 0
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "exported" / "tokenizer.json"))
    assert "split_special_tokens" not in (tmp_path / "exported" / "tokenizer_config.json").read_text()
    template = find_template("", TokenizerConfig(file=str(tmp_path / "exported")))
    assert template.source == CHATML
    said = [{"role": "user", "content": "a  b\n\n c"}]
    text = template.render(said, add_generation_prompt=True).text
    assert library.encode(text, add_special_tokens=False).ids == prompt_ids(
        template, said, None, after.tokenizer
    )


def test_runs_of_before_the_keys_were_renamed_are_read(sft, tmp_path):
    """Also resumed."""
    sft("old", "layout=single", "train.steps=1", "data.train_on=last_turn")
    file = tmp_path / "old" / "config.yaml"
    now = read_yaml(file)
    text = to_yaml(now)
    for line in ("chat:\n  template: ''\n  date: ''\n", "  train_on: last_turn\n", "  too_long: drop\n"):
        assert line in text
        text = text.replace(line, "")
    text = text.replace(
        "  name: sft\n", "  name: sft\n  template: ''\n  train_on: last_turn\n  too_long: drop\n"
    )
    file.write_text(text)
    assert read_yaml(file) == now
    sft("old", "layout=single", "train.steps=2", "data.train_on=last_turn")


def test_what_is_trained_is_shown_token_by_token(base, tmp_path, capsys):
    line = ["experiment=sft", f"from={base / 'run'}", f"data.source={base / 'chats.jsonl'}"]
    page = tmp_path / "page.html"
    assert show_data([*line, "train.sequence_length=128", "examples=2", f"html={page}"]) == 0
    out = capsys.readouterr().out
    texts = documents(120)
    assert "chats.jsonl:1, " in out
    said = texts[0][20:40].replace(" ", "·").replace("\n", "↵\n")
    assert f"<|im_start|>assistant↵\n⟦{said}<|im_end|>⟧" in out
    assert out.count("⟦") == 3  # a turn and two turns
    assert "1 left out: longer than a row (train.sequence_length); the first is chats.jsonl:8" in out
    assert page.read_text().count('<span class="t" title="') == sum(
        int(n) for n in re.findall(r"(\d+) trained", out)
    )
    capsys.readouterr()
    (tmp_path / "last.jinja").write_text(LAST_TURN)
    last = ["train.sequence_length=128", "examples=2", f"chat.template={tmp_path / 'last.jinja'}"]
    assert show_data([*line, *last]) == 0
    shown = capsys.readouterr()
    assert "chats.jsonl:2, 2 of 2, " in shown.out
    assert "179 examples of 120 documents: the chat template writes earlier turns otherwise" in shown.err
    assert show_data([f"experiment={write_experiment(tmp_path)}", "examples=1"]) == 0
    assert "<s>⟦" in capsys.readouterr().out
    assert show_data([*line, "examples=0"]) == 2
    assert show_data([*line, "html=page.txt"]) == 2


def test_without_words_it_takes_the_quickstarts_model_and_generated_tasks(
    base, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert launch("experiment=sft") == 2
    error = capsys.readouterr().err
    assert "from= is missing, and runs/quickstart/default is not there. Train it (python -m" in error
    assert "experiment=quickstart)" in error
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "default").symlink_to(base / "run")
    assert launch("experiment=sft", "train.steps=7", "--show") == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    shown = read_yaml(tmp_path / "shown.yaml")
    assert (shown.data.source, shown.chat.template, shown.train.steps) == ("tasks", "chatml", 7)
    assert shown.train.start_from == "runs/quickstart/default"
    assert shown.tokenizer.control == ("<|im_start|>", "<|im_end|>")
    assert launch("experiment=sft", f"from={base / 'run'}", "--show") == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    shown = read_yaml(tmp_path / "shown.yaml")
    assert (shown.chat.template, shown.tokenizer.control, shown.train.steps) == ("", (), 200)


@pytest.mark.parametrize("key", ["sample.tokens=9", "evaluate.base_batches=2"])
def test_a_reward_model_writes_no_answers(base, tmp_path, capsys, key):
    line = ["experiment=reward", f"from={base / 'run'}", f"run_dir={tmp_path / 'run'}"]
    assert launch(*line, "data.source=task_pairs", "chat.template=chatml", key) == 2
    assert f"{key}: a reward model predicts no tokens. Use {key[:-2]}=0" in capsys.readouterr().err
