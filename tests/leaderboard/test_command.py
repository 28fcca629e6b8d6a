"""The command as a user runs it, on small runs with tasks of files: every number is recomputed from the samples
by plain formulas; one more model evaluates only that model; every mistake is one line."""

from __future__ import annotations

import csv
import json
import math
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.arguments import read_command
from llm_jax.evaluate import run_tasks
from llm_jax.evaluate.samples import read_samples
from llm_jax.evaluate.suites import own_text
from llm_jax.evaluate.task_evaluator import TaskSettings
from llm_jax.evaluate.tasks.registry import TaskOptions, find_tasks
from llm_jax.evaluate.tasks.shots import with_shots
from llm_jax.evaluate.tasks.task import Item
from llm_jax.inspect.arguments import InspectArguments, sample_text
from llm_jax.leaderboard import evaluations
from llm_jax.leaderboard.__main__ import main
from llm_jax.leaderboard.evaluations import sample_keys
from llm_jax.leaderboard.models import Leaderboard, short_names
from llm_jax.leaderboard.page import script_data
from tests.evaluate.test_olmo import arc
from tests.tiny_run import launch, write_experiment

Z = 1.959963984540054
WORDS = ["the", "model", "reads", "a", "row", "of", "tokens", "and", "counts", "them", "again"]


def trained(folder: Path) -> list[str]:
    """Two documents that the run was trained on."""
    lines = (folder / "small.jsonl").read_text().splitlines()
    return [text for line in lines if len(text := json.loads(line)["text"]) > 200][:2]


def write_tasks(folder: Path) -> str:
    """Three files of tasks: `tasks=`."""
    rng = np.random.default_rng(0)
    some = lambda n: " ".join(rng.choice(WORDS, n))  # noqa: E731
    files = {
        "quiz": [
            {
                "context": some(4),
                "choices": [some(2) for _ in range(3)],
                "gold": i % 3,
                "source": f"s{i // 2}",
            }
            for i in range(24)
        ],
        "order": [{"sentence_good": some(5), "sentence_bad": some(5)} for _ in range(30)],
        "story": [{"text": some(12)} for _ in range(14)] + [{"text": text} for text in trained(folder)],
    }
    for name, records in files.items():
        lines = [json.dumps({"id": f"{name}{i}", **record}) + "\n" for i, record in enumerate(records)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return ",".join(str(folder / f"{name}.jsonl") for name in files)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, tasks): a run with checkpoints, and the page of two of them."""
    folder = tmp_path_factory.mktemp("leaderboard")
    more = ("checkpoint.keep=4", "checkpoint.keep_best=false", "optimizer.learning_rate=0.03")
    assert launch(f"experiment={write_experiment(folder)}", f"run_dir={folder / 'run'}", *more) == 0
    tasks = write_tasks(folder)
    models = [f"{folder / 'run'}@{step}" for step in (2, 8)]
    assert main([*models, f"tasks={tasks}", f"out={folder / 'page'}", "against=run@8"]) == 0
    return folder, tasks


def rows_of(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with (folder / "leaderboard.csv").open() as file:
        return {(row["model"], row["column"], row["metric"]): row for row in csv.DictReader(file)}


def samples_of(folder: Path, step: int, task: str):
    (file,) = (folder / "run" / "evaluations" / str(step)).glob(f"{task}.*.samples.jsonl.zst")
    return sorted(read_samples(file), key=lambda sample: int(sample["id"].removeprefix(task)))


def share(samples, divided_by):
    """1 or 0 of each sample (a part where choices tie)."""
    found = []
    for sample in samples:
        values = [c["logprob"] / (c[divided_by] if divided_by else 1) for c in sample["choices"]]
        found.append((values[sample["gold"]] == max(values)) / values.count(max(values)))
    return np.array(found)


def bits_per_byte(samples):
    gold = [sample["choices"][sample["gold"]] for sample in samples]
    return -sum(c["logprob"] for c in gold) / math.log(2) / sum(c["bytes"] for c in gold)


def test_all_numbers_are_those_of_the_samples(made):
    folder, _ = made
    rows = rows_of(folder / "page")
    steps = {"run@2": 2, "run@8": 8}
    order = {name: share(samples_of(folder, step, "order"), None) for name, step in steps.items()}
    quiz = {name: share(samples_of(folder, step, "quiz"), "characters") for name, step in steps.items()}
    summary = json.loads((folder / "run" / "summary.json").read_text())
    for name, step in steps.items():
        row = rows[name, "order", "raw"]
        p, n = order[name].mean(), len(order[name])
        assert float(row["value"]) == pytest.approx(p)
        middle, half = p + Z * Z / 2 / n, Z * math.sqrt(p * (1 - p) / n + Z * Z / 4 / n**2)
        ends = (middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n)
        assert (float(row["low"]), float(row["high"])) == pytest.approx(ends)
        row = rows[name, "quiz", "per_character"]
        assert float(row["value"]) == pytest.approx(quiz[name].mean())
        residuals = (quiz[name] - quiz[name].mean()).reshape(12, 2).sum(1)  # two items a source
        assert row["clusters"] == "12"
        assert float(row["stderr"]) == pytest.approx(math.sqrt(12 / 11 * (residuals**2).sum()) / 24)
        for task in ("order", "quiz", "story"):
            value = float(rows[name, task, "bits_per_byte"]["value"])
            assert value == pytest.approx(bits_per_byte(samples_of(folder, step, task)))
        centred = np.mean([(quiz[name].mean() - 1 / 3) / (2 / 3), (order[name].mean() - 0.5) / 0.5])
        assert float(rows[name, "all", "centred_score"]["value"]) == pytest.approx(centred)
        assert float(row["train_flops"]) == pytest.approx(summary["train_flops"] * step / 8)
        assert int(row["parameters"]) == summary["parameters"]
    row, other = rows["run@2", "order", "raw"], rows["run@8", "order", "raw"]
    assert float(row["difference"]) == pytest.approx(order["run@2"].mean() - order["run@8"].mean())
    up, down = (order["run@2"] > order["run@8"]).sum(), (order["run@2"] < order["run@8"]).sum()
    a, b, n = (up + 1) / 32, (down + 1) / 32, 32
    half = Z * math.sqrt((a + b - (a - b) ** 2) / n)
    ends = (float(row["difference_low"]), float(row["difference_high"]))
    assert ends == pytest.approx((a - b - half, a - b + half))
    assert other["difference"] == ""
    shown = ends[0] > 0 or ends[1] < 0
    assert row["difference_shown"] == str(int(shown))
    ranks = [(r["rank_best"], r["rank_worst"]) for r in (row, other)]
    better = ("1", "1"), ("2", "2")
    assert ranks == ([("1", "2")] * 2 if not shown else list(better if up > down else reversed(better)))


def test_items_that_are_in_the_training_corpus_are_found_and_scored_without(made):
    folder, _ = made
    (file,) = (folder / "run" / "evaluations" / "8").glob("story.*[0-9a-f].json")
    found = json.loads(file.read_text())["contamination"]
    samples = samples_of(folder, 8, "story")
    assert (found["n_items"], found["n"]) == (2, 10)
    assert found["covered"] > 0.9
    assert found["value_with"] == pytest.approx(bits_per_byte(samples))
    assert found["value_without"] == pytest.approx(bits_per_byte(samples[:14]))
    assert rows_of(folder / "page")["run@8", "quiz", "per_character"]["contaminated_items"] == "0"


def test_one_more_model_evaluates_only_that_model(made, monkeypatch):
    folder, tasks = made
    opened, open_model = [], run_tasks.open_model

    def counted(source, **options):
        opened.append(options["step"])
        return open_model(source, **options)

    monkeypatch.setattr(run_tasks, "open_model", counted)
    models = [f"{folder / 'run'}@{step}" for step in (2, 8, 6)]
    assert main([*models, f"tasks={tasks}", f"out={folder / 'three'}", "compute.run@6=1e9"]) == 0
    assert opened == [6]
    rows = rows_of(folder / "three")
    before = rows_of(folder / "page")
    assert {key: row["value"] for key, row in rows.items() if key[0] != "run@6"} == {
        key: row["value"] for key, row in before.items()
    }
    assert rows["run@6", "order", "raw"]["train_flops"] == "1000000000.0"
    assert main([*models[:2], f"tasks={tasks}", f"out={folder / 'page'}"]) == 0
    assert opened == [6]


def test_an_item_of_the_page_opens_in_inspect(made):
    folder, _ = made
    page = (folder / "page" / "leaderboard.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    items = data["items"]["quiz"]["items"]
    name, item = next(iter(items.items()))
    text = sample_text(f"{data['words']['quiz']}#{name}", folder / "run")
    assert text == item["context"] + item["choices"][item["gold"]]
    assert shlex.split(data["models"][0]["inspect"])[:4] == [
        "python",
        "-m",
        "llm_jax.inspect",
        str(folder / "run"),
    ]


def test_a_model_without_a_tokenizer_is_found_before_another_is_evaluated(
    made, tmp_path, capsys, monkeypatch
):
    folder, _ = made
    shutil.copytree(folder / "run", bare := tmp_path / "bare")
    shutil.rmtree(bare / "tokenizer")
    monkeypatch.setattr(evaluations, "evaluate_tasks", None)
    assert main([str(folder / "run"), str(bare), f"tasks={folder / 'quiz.jsonl'}", f"out={tmp_path}"]) == 2
    assert f"{bare}: has no tokenizer" in capsys.readouterr().err


def test_inspect_gets_the_keys_on_which_the_scored_text_depends(tmp_path, monkeypatch):
    """Shots of a package in a folder, and a text of the first run beside a model without one."""
    arc(tmp_path / "requests of olmo")
    documents = {"first": "ab", "second": "cd"}
    monkeypatch.setattr(own_text, "held_out_documents", lambda model: documents[model.name])
    monkeypatch.setattr(
        own_text, "cloze_items", lambda texts, *_: [Item("0", texts, choices=(" x",), gold=0)]
    )
    options = TaskOptions(tmp_path / "requests of olmo", tmp_path / "first")
    tasks = {task.name: task for task in find_tasks("arc_easy,cloze,german_verb_case", options)}
    settings = {name: TaskSettings(shots=2 * (name == "arc_easy"), seed=3) for name in tasks}
    keys = {name: sample_keys(task, options, settings[name]) for name, task in tasks.items()}
    assert keys["german_verb_case"] == {}
    assert keys["cloze"] == {"corpus": tmp_path / "first"}
    data = script_data(Leaderboard([], {}, {}, keys=keys), [], {}, 0)
    for name, number in (("arc_easy", 1), ("cloze", 0)):
        item = list(with_shots(tasks[name], settings[name].shots, 3).items())[number]
        line = f"{tmp_path / 'second'} sample={name}#{item.id}{data['keys'][name]}"
        command = read_command(shlex.split(line), InspectArguments)
        assert command is not None
        assert command.source[0] == item.context + item.choices[item.gold or 0]
        assert ("shot 1" in command.source[0]) == (name == "arc_easy")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tasks=german", "out=OUT"], "RUNS_AND_FOLDERS... is missing"),
        (["RUN", "out=OUT"], "tasks=NAMES is missing"),
        (["RUN", "tasks=german"], "out=FOLDER is missing"),
        (["RUN", "RUN", "tasks=german", "out=OUT"], "is given twice"),
        (["RUN", "tasks=german", "out=OUT", "against=rum"], "against=rum: there is no such model; did you mean 'run'?"),
        (["RUN", "tasks=QUIZ", "out=OUT", "compute.rum=1e9"], "compute.rum: there is no such model; they are run"),
        (["RUN/none", "tasks=QUIZ", "out=OUT"], "no such folder; give a run folder"),
        (["RUN", "tasks=germann", "out=OUT"], "tasks=germann: is no task"),
        (["RUN", "tasks=QUIZ", "out=OUT", "limit=0"], "limit=0: must be"),
        (["RUN@777", "tasks=QUIZ", "out=OUT"], "step=777"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(made, tmp_path, capsys, words, line):
    folder, _ = made
    stands_for = {"RUN": folder / "run", "OUT": tmp_path / "out", "QUIZ": folder / "quiz.jsonl"}
    for name, value in stands_for.items():
        words = [word.replace(name, str(value)) for word in words]
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert line in error
    assert error.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_names_are_as_short_as_they_can_be():
    made = [
        (Path(p), s)
        for p, s in (("runs/a/default", None), ("runs/b/default", 3), ("x/c", None), ("y/c", None))
    ]
    assert short_names(made) == ["a", "b@3", "x/c", "y/c"]
    assert short_names([(Path("m"), 1), (Path("m"), 2)]) == ["m@1", "m@2"]
