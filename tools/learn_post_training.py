"""What post-training teaches the quickstart's model, as the table of docs/post_training.md.

  python -m tools.learn_post_training                      the model in runs/quickstart/default, three seeds
  python -m tools.learn_post_training base=RUN seeds=1     another model; fewer seeds
  python -m tools.learn_post_training out=FOLDER           where the runs go, which a second call doesn't repeat (runs/learn)

For each seed: SFT of all parameters on generated tasks; the same with LoRA of rank 16 on all matrices; DPO, from the SFT, on
pairs that a verifier made of its mistakes; a reward model on generated pairs; and a small model that learns from text alone and from the
quickstart's model, at equal tokens. Answers are to held-out prompts, which none of them was trained on.
Exit code 1 where one of them doesn't hold: 40% exact answers after SFT (below 5% before), DPO's gain above 0 with its 95%
interval, 90% of pairs ranked right, LoRA's held-out loss within 2% of full training's, distillation below text alone.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ANSWERS = 400
TASKS = (
    "data.source=tasks",
    "chat.template=chatml",
    "tokenizer.control=['<|im_start|>', '<|im_end|>']",
    "train.steps=200",
    "train.batch_size=16",
    "train.sequence_length=256",
    "evaluate.every=0",
)
FULL = "optimizer.learning_rate=3e-3"
LORA = (
    "adapter.rank=16",
    "adapter.alpha=512",
    "train.trainable=[embedding]",
    "optimizer.learning_rate=1.5e-3",
    "sample.tokens=0",
    "evaluate.base_batches=0",
)
"""The embedding is trained too: it has the rows of the new control tokens, and is overfitted at the rates that an adapter of
alpha = rank needs. So alpha is large instead, and the rate small."""
SHORT = ("train.sequence_length=256", "evaluate.every=0")
DPO = (*SHORT, "train.steps=100", "train.batch_size=16", "optimizer.learning_rate=5e-4", "objective.sft=1")
MISTAKES = ("data.source=task_pairs", "data.held_out_fraction=0.99", "answers=4000")
"""Of which prompts the SFT's mistakes are; no held-out prompt of the tasks is among them."""
REWARD = (*SHORT, "train.steps=300", "train.batch_size=8", "optimizer.learning_rate=1e-3")
SMALL = (
    "data.source=stdlib", "model.layers=2", "model.embed=64", "model.heads=4", "model.mlp=256", "train.steps=100",
    "train.batch_size=8", "evaluate.every=0", "sample.tokens=0", "optimizer.name=muon", "optimizer.learning_rate=8e-3",
)  # fmt: skip

Run = tuple[Path, tuple[str, ...]]
"""A run folder, and the words of the launcher that make it."""


def run(module: str, *arguments: str) -> None:
    """A command of llm_jax in a process of its own; raises SystemExit with its last lines where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", f"llm_jax.{module}", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{module} {' '.join(arguments)}\n{done.stdout[-600:]}{done.stderr[-600:]}")


def trained(folder: Path, arguments: tuple[str, ...]) -> None:
    """Trains a run, unless it is there."""
    run("launch", *arguments, f"run_dir={folder}")


def answered(folder: Path, *arguments: str) -> list[bool]:
    """Whether a model's answers to held-out prompts are right, where the prompt has one right answer (a question about
    the library has none)."""
    out = folder / "answers.json"
    if not out.exists():
        run("evaluate", str(folder), f"answers={ANSWERS}", f"out={out}", *arguments)
    answers = json.loads(out.read_text())["answers"]
    return [one["right"] for one in answers if one["right"] is not None]


def first_runs(base: str, here: Path, seed: int) -> list[Run]:
    """The runs of a seed that begin with the base model."""
    start, random = f"from={base}", f"train.seed={seed}"
    small = ("experiment=distill", f"teacher={base}", random, *SMALL)
    return [
        (here / "sft", ("experiment=sft", start, random, *TASKS, FULL)),
        (here / "lora", ("experiment=sft", start, random, *TASKS, *LORA)),
        (here / "alone", (*small, "objective.hard=1")),
        (here / "distilled", small),
    ]


def next_runs(here: Path, seed: int) -> list[Run]:
    """The runs of a seed that begin with its SFT."""
    start, random = f"from={here / 'sft'}", f"train.seed={seed}"
    return [
        (here / "dpo", ("experiment=dpo", start, f"data.source={here / 'pairs.jsonl'}", random, *DPO)),
        (here / "reward", ("experiment=reward", start, random, *REWARD)),
    ]


def make_pairs(here: Path) -> None:
    """Right answers with the mistakes of a seed's SFT, once."""
    if not (pairs := here / "pairs.jsonl").exists():
        run("evaluate", str(here / "sft"), *MISTAKES, f"pairs={pairs}")


def learn(base: str, folders: list[Path]) -> list[dict[str, Any]]:
    """All runs, two at a time, a folder for each seed: what the table needs of each seed."""
    with ThreadPoolExecutor(2) as pool:
        do = lambda work, items: list(pool.map(work, items))  # noqa: E731
        seeds = list(enumerate(folders))
        do(lambda one: trained(*one), [one for seed, here in seeds for one in first_runs(base, here, seed)])
        do(make_pairs, folders)
        do(lambda one: trained(*one), [one for seed, here in seeds for one in next_runs(here, seed)])
        do(lambda here: answered(here / "sft"), folders)
        do(lambda here: answered(here / "dpo", "data.source=tasks"), folders)
        return do(results, folders)


def results(here: Path) -> dict[str, Any]:
    """What the table needs of a seed whose runs are done."""
    summary = lambda name: json.loads((here / name / "summary.json").read_text())  # noqa: E731
    return {
        "full": summary("sft")["eval_loss"],
        "lora": summary("lora")["eval_loss"],
        "reward": summary("reward")["eval_accuracy"],
        "alone": summary("alone")["eval_loss"],
        "distilled": summary("distilled")["eval_loss"],
        "sft": answered(here / "sft"),
        "dpo": answered(here / "dpo"),
        "before": first_answers(here / "sft"),
    }


def first_answers(sft: Path) -> float:
    """The share of exact answers before the first step, as the run's log has it."""
    line = next(line for line in (sft / "log.txt").read_text().splitlines() if "exact answers" in line)
    return float(line.split("prompts: ")[1].split("%")[0]) / 100


def gain(found: list[dict[str, Any]]) -> tuple[float, float]:
    """(mean, half of its 95% interval) of the share of answers that DPO gains, over prompts and seeds, in pairs."""
    differences = [
        after - before for one in found for before, after in zip(one["sft"], one["dpo"], strict=True)
    ]
    return statistics.mean(differences), 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))


def main(arguments: list[str]) -> int:
    """The command; its exit code."""
    given = dict(argument.split("=", 1) for argument in arguments)
    base, seeds = given.get("base", "runs/quickstart/default"), int(given.get("seeds", 3))
    out, begun = Path(given.get("out", "runs/learn")), time.monotonic()
    found = learn(base, [out / str(seed) for seed in range(seeds)])
    share = lambda name: [statistics.mean(one[name]) for one in found]  # noqa: E731
    ratios = [one["lora"] / one["full"] - 1 for one in found]
    (mean, half), text = gain(found), lambda values, form: ", ".join(format(value, form) for value in values)
    rows = [
        ("exact answers of the base model", text([one["before"] for one in found], ".1%"), all(one["before"] < 0.05 for one in found)),
        ("exact answers after SFT", text(share("sft"), ".1%"), all(value >= 0.4 for value in share("sft"))),
        ("exact answers after DPO", f"{text(share('dpo'), '.1%')}; gain {mean:+.1%} ± {half:.1%}", mean - half > 0),
        ("held-out pairs that the reward model ranks right", text([one["reward"] for one in found], ".1%"), all(one["reward"] >= 0.9 for one in found)),
        ("held-out loss of SFT: all parameters", text([one["full"] for one in found], ".4f"), True),
        ("held-out loss of SFT: LoRA of rank 16", f"{text([one['lora'] for one in found], '.4f')} ({text(ratios, '+.1%')})", all(ratio <= 0.02 for ratio in ratios)),
        ("held-out loss of a small model from text alone", text([one["alone"] for one in found], ".4f"), True),
        ("the same tokens with a teacher", text([one["distilled"] for one in found], ".4f"), all(one["distilled"] < one["alone"] for one in found)),
    ]  # fmt: skip
    print(f"| {len(found)} seeds | |\n|---|---|")
    for name, values, holds in rows:
        print(f"| {name} | {values}{'' if holds else ' (does not hold)'} |")
    print(f"\n{(time.monotonic() - begun) / 60:.1f} minutes")
    return 0 if all(holds for _, _, holds in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
