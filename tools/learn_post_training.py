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
    "train.steps=100",
    "train.batch_size=16",
    "train.sequence_length=256",
    "evaluate.every=0",
)
FULL = "optimizer.learning_rate=3e-3"
LORA = ("adapter.rank=16", "train.trainable=[embedding]", "optimizer.learning_rate=1e-2")
"""The embedding is trained too: it has the rows of the new control tokens."""
SHORT = ("train.sequence_length=256", "evaluate.every=0")
DPO = (*SHORT, "train.steps=75", "train.batch_size=16", "optimizer.learning_rate=5e-4", "objective.sft=1")
MISTAKES = ("data.source=task_pairs", "data.held_out_fraction=0.99", "answers=2500")
"""Of which prompts the SFT's mistakes are; no held-out prompt of the tasks is among them."""
REWARD = (*SHORT, "train.steps=200", "train.batch_size=8", "optimizer.learning_rate=1e-3")
SMALL = (
    "data.source=stdlib", "model.layers=2", "model.embed=64", "model.heads=4", "model.mlp=256", "train.steps=300",
    "train.batch_size=8", "evaluate.every=0", "sample.tokens=0", "optimizer.name=muon", "optimizer.learning_rate=8e-3",
)  # fmt: skip


def run(module: str, *arguments: str) -> None:
    """A command of llm_jax in a process of its own; raises SystemExit with its last lines where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", f"llm_jax.{module}", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{module} {' '.join(arguments)}\n{done.stdout[-600:]}{done.stderr[-600:]}")


def trained(folder: Path, *arguments: str) -> dict[str, Any]:
    """The summary of a run in a folder, which is trained if it isn't there yet."""
    run("launch", *arguments, f"run_dir={folder}")
    return json.loads((folder / "summary.json").read_text())


def answered(folder: Path, *arguments: str) -> dict[str, Any]:
    """A model's answers to held-out prompts of the tasks."""
    out = folder / "answers.json"
    if not out.exists():
        run("evaluate", str(folder), f"answers={ANSWERS}", f"out={out}", *arguments)
    return json.loads(out.read_text())


def learn(base: str, out: Path, seed: int) -> dict[str, Any]:
    """All runs of one seed: what the table needs."""
    here, start, random = out / str(seed), f"from={base}", f"train.seed={seed}"
    sft = here / "sft"
    full = trained(sft, "experiment=sft", start, random, *TASKS, FULL)
    lora = trained(here / "lora", "experiment=sft", start, random, *TASKS, *LORA)
    pairs = here / "pairs.jsonl"
    if not pairs.exists():
        run("evaluate", str(sft), *MISTAKES, f"pairs={pairs}")
    trained(here / "dpo", "experiment=dpo", f"from={sft}", f"data.source={pairs}", random, *DPO)
    reward = trained(here / "reward", "experiment=reward", f"from={sft}", random, *REWARD)
    small = ("experiment=distill", f"teacher={base}", random, *SMALL)
    alone = trained(here / "alone", *small, "objective.hard=1")
    distilled = trained(here / "distilled", *small)
    return {
        "full": full["eval_loss"],
        "lora": lora["eval_loss"],
        "reward": reward["eval_accuracy"],
        "alone": alone["eval_loss"],
        "distilled": distilled["eval_loss"],
        "sft": [bool(one["right"]) for one in answered(sft)["answers"]],
        "dpo": [bool(one["right"]) for one in answered(here / "dpo", "data.source=tasks")["answers"]],
        "before": first_answers(sft),
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
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda seed: learn(base, out, seed), range(seeds)))
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
