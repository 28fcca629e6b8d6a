"""Preferences as a user starts them: from a model with a chat template, on records of answers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.files import read_json_lines
from llm_jax.evaluate.__main__ import main as evaluate
from llm_jax.objective.dpo import DPO
from llm_jax.objective.ranking import order_of_pairs
from llm_jax.run.initial_weights import experiment_from_pairs
from llm_jax.run.show_data import main as show_data
from tests.data.test_chat import folder, tokenizer  # noqa: F401  (fixtures)
from tests.tiny_run import documents, launch, losses, write_experiment

FSDP_TENSOR = ("layout=fsdp_tensor", "mesh.data=4", "mesh.tensor=2")


@pytest.fixture(scope="module")
def base(folder, tmp_path_factory) -> Path:  # noqa: F811
    """A run of one step with the tokenizer of a chat model, and records of answers."""
    path = tmp_path_factory.mktemp("base")
    start = [f"experiment={write_experiment(path)}", f"tokenizer.file={folder}", "train.steps=1"]
    assert launch(*start, f"run_dir={path / 'run'}") == 0
    pairs, answers = [], []
    for i, text in enumerate(documents(90)):
        prompt, good, bad = text[:15], text[15 : 20 + i % 20], f"no {i} " * (1 + i % 3)
        pairs.append({"prompt": prompt, "chosen": good, "rejected": bad})
        answers.append({"prompt": prompt, "completion": bad if i % 2 else good, "label": i % 2 == 0})
    pairs[3]["chosen"] = "much too long " * 40
    write(path / "pairs.jsonl", pairs)
    write(path / "answers.jsonl", answers)
    return path


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def run(base, tmp_path):
    def train(name: str, experiment: str, *arguments: str, code: int = 0) -> list[dict]:
        data = "answers" if experiment == "kto" else "pairs"
        sizes = [
            "train.steps=4",
            "train.batch_size=8",
            "train.sequence_length=128",
            "optimizer.learning_rate=1e-2",
        ]
        line = [
            f"from={base / 'run'}",
            f"data.source={base / data}.jsonl",
            "evaluate.every=2",
            "checkpoint.every=2",
        ]
        assert (
            launch(f"experiment={experiment}", *line, f"run_dir={tmp_path / name}", *sizes, *arguments)
            == code
        )
        return read_json_lines(tmp_path / name / "metrics.jsonl") if code == 0 else []

    return train


def values(metrics: list[dict], name: str) -> np.ndarray:
    return np.array([line[name] for line in metrics if name in line])


def scored(capsys, *words: object) -> dict[str, float]:
    """What `evaluate` writes."""
    out = Path(str(words[0])) / "scores.json"
    assert evaluate([*map(str, words), f"out={out}"]) == 0
    assert "accuracy" in (printed := capsys.readouterr().out) or "eval_kl" in printed
    return json.loads(out.read_text())


def test_dpo_starts_at_log_2_and_is_scored_again(run, base, tmp_path, capsys):
    one = run("one", "dpo", "layout=single")
    out = capsys.readouterr().out
    assert (
        "of 90 examples are left out: longer than a row (train.sequence_length); the first is pairs.jsonl:4"
        in out
    )
    assert values(one, "train_loss")[0] == pytest.approx(np.log(2), abs=1e-6)
    assert values(one, "margin")[0] == pytest.approx(0, abs=1e-6)
    assert values(one, "ties")[0] == pytest.approx(1)
    assert values(one, "train_loss")[-1] < 0.69
    assert values(one, "accuracy")[-1] > 0.8
    assert set(one[-1]) >= {
        "eval_loss",
        "eval_accuracy",
        "eval_margin",
        "eval_chosen_logp",
        "eval_rejected_logp",
    }
    assert (tmp_path / "one" / "curves.png").stat().st_size > 10_000
    # The held-out pairs are scored again, the reference in each step; and other pairs of that kind.
    found, last = scored(capsys, tmp_path / "one"), one[-1]
    for name in ("eval_loss", "eval_margin", "eval_chosen_logp"):
        assert found[name] == pytest.approx(last[name], rel=1e-5), name
    assert (found["eval_pairs"], found["step"]) == (last["eval_pairs"], 4)
    assert found["objective"]["loss"] == "sigmoid"
    other = scored(
        capsys, tmp_path / "one", f"data.source={base / 'pairs.jsonl'}", "data.held_out_fraction=0.5"
    )
    assert other["eval_pairs"] > found["eval_pairs"]


@pytest.mark.slow
def test_dpo_on_eight_devices_with_the_reference_in_each_step_agrees_with_one(run):
    one = run("one", "dpo", "layout=single")
    many = run("many", "dpo", *FSDP_TENSOR, "train.microbatches=2", "objective.cache=false")
    for name in ("train_loss", "eval_loss", "chosen_logp", "eval_margin"):
        np.testing.assert_allclose(values(many, name), values(one, name), rtol=1e-5, atol=1e-6)


def test_kto_with_an_adapter_learns_and_resumes_bit_for_bit(run, tmp_path, capsys):
    """Its reference is the model with the adapter switched off, whose log-probabilities are in the cache."""
    arguments = ("layout=single", "adapter.rank=4", "objective.undesirable_weight=0.5")
    one = run("one", "kto", *arguments)
    assert re.search(r"answers in each, .* padding; \d+ answers are wanted, \d+ not", capsys.readouterr().out)
    assert values(one, "train_loss")[0] == pytest.approx(0.5 * 0.75, abs=0.1)
    for name in ("kl", "wanted_reward", "unwanted_reward"):
        assert values(one, name)[0] == pytest.approx(0, abs=1e-5)
    assert values(one, "wanted_reward")[-1] > values(one, "unwanted_reward")[-1]
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "4")
    (tmp_path / "one" / "summary.json").unlink()
    again = run("one", "kto", *arguments)
    assert "reference: log-probabilities of the data (cached)" in capsys.readouterr().out
    by_step = losses(tmp_path / "one")  # fails where a step was done twice with different values
    assert list(by_step.values()) == values(one, "train_loss").tolist()
    assert len(values(again, "train_loss")) > len(values(one, "train_loss"))
    info = json.loads((tmp_path / "one" / "checkpoints" / "4" / "info" / "metadata").read_text())
    assert len(info["frozen"]["reference"]["sha256"]) == 64
    found, last = scored(capsys, tmp_path / "one"), again[-1]  # its adapter beside the base, as in training
    for name in ("eval_loss", "eval_kl", "eval_wanted_reward", "eval_examples"):
        assert found[name] == pytest.approx(last[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    ("experiment", "arguments"),
    [("orpo", []), pytest.param("cpo", ["objective.loss=simpo", "objective.beta=2"], marks=pytest.mark.slow)],
)
def test_orpo_and_simpo_need_no_reference(run, experiment, arguments):
    one = run("one", experiment, "layout=single", *arguments)
    assert values(one, "train_loss")[-1] < values(one, "train_loss")[0]
    assert set(one[-1]) >= {"eval_loss", "eval_accuracy"}


PROMPT = {"prompt": "a", "chosen": "good", "rejected": "bad"}
ANSWER = {"prompt": "a", "completion": "good", "label": True}


@pytest.mark.parametrize(
    ("experiment", "records", "arguments", "message"),
    [
        ("dpo", [{**PROMPT, "rejected": "good"}], [], "1 of 21 examples: chosen is equal to rejected; the first is "
         "records.jsonl:1. Nothing can be learned from them: remove them, or use objective.equal_answers=drop"),
        ("kto", [], [], "examples is true, and there is nothing to tell apart. Add unwanted answers"),
        ("dpo", [{"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]}], [],
         "records.jsonl:1: has no prompt: the record must have one, or chosen and rejected must begin with the same turns"),
        ("dpo", [ANSWER], [], "records.jsonl:1: is a label; must have prompt, chosen and rejected"),
        ("kto", [{"prompt": "a", "completion": "good"}], [], "records.jsonl:1: is a completion; must have prompt, completion "
         "and label (or prompt, chosen and rejected)"),
        ("kto", [{**PROMPT, "rejected": "good"}], [], "chosen is equal to rejected; the first is records.jsonl:1. Nothing can "
         "be learned from them: remove them\n"),
        ("kto", [{**ANSWER, "label": "yes"}], [], "label must be true or false, and is 'yes'"),
        ("dpo", [], ["train.sequence_length=8"], "none of its 20 examples can be trained on: longer than a row"),
        ("dpo", [], ["data.too_long=cut"], "data.too_long=cut: answers that are compared aren't cut"),
        ("dpo", [], ["data.train_on=all"], "data.train_on=all: this objective is of the answers' tokens"),
        ("dpo", [], ["objective.label_smoothing=0.5"], "objective.label_smoothing=0.5: must be 0 or more, and below 0.5"),
        ("dpo", [], ["objective.loss=exo_pair"], "objective.label_smoothing=0.0: exo_pair takes its logarithm"),
        ("dpo", [], ["objective.loss=robust", "objective.label_smoothing=0.5"], "objective.label_smoothing=0.5: must be"),
        ("dpo", [], ["objective.loss=dpo"], "objective.loss=dpo: must be one of sigmoid, hinge, ipo"),
        ("dpo", [], ["objective.reference=nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(base, tmp_path, capsys, experiment, records, arguments, message):
    usual = [{**(ANSWER if experiment == "kto" else PROMPT), "prompt": f"question {i}"} for i in range(20)]
    source = write(tmp_path / "records.jsonl", [*records, *usual])
    line = [
        f"experiment={experiment}",
        f"from={base / 'run'}",
        f"data.source={source}",
        "train.sequence_length=128",
    ]
    capsys.readouterr()
    assert launch(*line, "train.steps=2", "layout=single", f"run_dir={tmp_path / 'wrong'}", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "wrong" / "checkpoints").exists()


def test_all_answers_to_a_prompt_are_held_out_together(base, tmp_path):
    from llm_jax import data
    from llm_jax.data.answer_encoder import AnswerEncoder
    from llm_jax.data.chat_template import CHATML, ChatTemplate

    records = [
        {"prompt": f"question {i % 25}", "completion": f"{i}", "label": i % 3 == 0} for i in range(100)
    ]
    source = write(tmp_path / "answers.jsonl", records)
    corpus = data.prepare(
        data.DataConfig(source=str(source), text_key=data.WHOLE_RECORD, held_out_fraction=0.2),
        data.TokenizerConfig(file=str(base / "run" / "tokenizer")),
        sequence_length=128, batch_size=2, seed=0, run_dir=None, log=lambda line: None,
        encoder=AnswerEncoder("label", ChatTemplate(CHATML), 128), rows="labelled",
    )  # fmt: skip
    held_out = [json.dumps(record) for record in records if corpus.is_held_out(json.dumps(record).encode())]
    prompts = {json.loads(line)["prompt"] for line in held_out}
    assert len(held_out) == 4 * len(prompts) == corpus.held_out_documents
    assert 0 < len(prompts) < 12


def test_the_answers_of_a_pair_are_a_wanted_and_an_unwanted_one(base, tmp_path, capsys):
    """For kto, as TRL takes pairs apart; `data.show` names the label, and for dpo which answer is better."""
    records = [
        {"prompt": "a", "chosen": "good", "rejected": "", "margin": 2},
        ANSWER,
        {**PROMPT, "chosen": " "},
    ]
    source = write(tmp_path / "records.jsonl", records)
    line = [
        f"from={base / 'run'}",
        f"data.source={source}",
        "train.sequence_length=128",
        f"run_dir={tmp_path / 'x'}",
    ]
    shown = {}
    for experiment in ("kto", "dpo"):
        own = [one for one in records if experiment == "kto" or one != ANSWER]
        write(source, own + [{**PROMPT, "prompt": f"question {i}"} for i in range(20)])
        assert show_data([f"experiment={experiment}", *line, f"examples={len(own)}"]) == 0
        shown[experiment] = [
            one for one in capsys.readouterr().out.splitlines() if one.startswith("records.jsonl")
        ]
    assert [re.sub(r", held out|, \d+ tokens, \d+ trained", "", one) for one in shown["kto"]] == [
        "records.jsonl:1, 1 of 2, wanted (label true)",
        "records.jsonl:1, 2 of 2, not wanted (label false)",  # that nothing is said may be unwanted
        "records.jsonl:2, wanted (label true)",
        "records.jsonl:3, 1 of 2, left out: an answer is empty",
        "records.jsonl:3, 2 of 2, not wanted (label false)",
    ]
    assert [re.sub(r", held out|, \d+ tokens, \d+ trained", "", one) for one in shown["dpo"]] == [
        "records.jsonl:1, chosen, margin 2",
        "records.jsonl:1, rejected, margin 2",
        "records.jsonl:2, left out: an answer is empty",
    ]


def test_a_tie_is_no_wrong_order_in_the_log():
    """Its share is a score of its own; the accuracy counts it as wrong, as TRL does."""
    order = order_of_pairs(jnp.array([0.0, 2.0, 1e-7, 1.0]), jnp.array([0.0, 1.0, 0.0, 3.0]))
    means = {name: float(values.mean()) for name, values in order.items()}
    assert means == {"accuracy": 0.5, "ties": 0.5}
    assert DPO().progress({**means, "margin": 0.0}) == ["accuracy 0.5 (50.0% tied)", "margin 0"]
    assert DPO().progress({"accuracy": 0.0, "ties": 1.0, "margin": 0.0})[0] == "accuracy 0 (all tied)"
    assert DPO().progress({"accuracy": 0.75, "ties": 0.0, "margin": 1.0})[0] == "accuracy 0.75"
    held_out = {"eval_loss": 0.6931, "eval_accuracy": 0.0, "eval_ties": 1.0, "eval_margin": 0.0}
    assert DPO().line(held_out) == "held out: loss 0.6931, accuracy 0.0% (all tied), margin 0"


@pytest.mark.parametrize("experiment", ["dpo", "kto", "orpo", "cpo", "reward"])
def test_without_from_it_takes_the_model_of_sft_and_generated_pairs(
    experiment, base, tmp_path, monkeypatch, capsys
):
    path = Path(f"experiments/{experiment}.py").absolute()
    monkeypatch.chdir(tmp_path)
    assert launch(f"experiment={path}") == 2
    assert capsys.readouterr().err == (
        "error: from= is missing, and runs/sft/default is not there. Train it (python -m llm_jax.launch "
        "experiment=sft), or add from=RUN_OR_FOLDER\n"
    )
    Path("runs/sft").mkdir(parents=True)
    Path("runs/sft/default").symlink_to(base / "run")
    made = experiment_from_pairs([("experiment", str(path)), ("train.steps", "3")])
    assert (made.train.start_from, made.data.source) == ("runs/sft/default", "task_pairs")
    assert (made.train.steps, made.train.sequence_length) == (3, 256)
    assert made.optimizer.learning_rate > 2e-5  # of a model this small
