"""A board of made-up models: samples as an evaluation writes them, from random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.evaluate.task_scores import score_samples
from llm_jax.evaluate.tasks.task import Item, Task
from llm_jax.leaderboard.models import Evaluation, Leaderboard, RankedModel

ITEMS = 120
MODELS = (("small", 1.3e6, 1.2e13, 0.0), ("wide", 8e6, 2e14, 0.6), ("smol", 1.35e8, None, 2.0))
"""Name, parameters, FLOPs of training, and how good it is."""


def questions(name: str, choices: int, sources: int = 0) -> list[Item]:
    """Items of a choice: the right one is the first, second, ... in turn."""
    return [
        Item(
            f"{name}-{i}",
            context=f"Frage {i}: </script><b>&amp; {name}?\n",
            choices=tuple(f" answer {c} of {i}" for c in range(choices)),
            gold=i % choices,
            source=f"passage {i % sources}" if sources else "",
        )
        for i in range(ITEMS)
    ]


def tasks() -> dict[str, Task]:
    """Tasks of four kinds in two groups."""
    made = (
        Task(name="quiz", language="en", kind="choice", items=lambda: questions("quiz", 4), groups=("core",)),
        Task(
            name="passages", language="en", kind="choice", items=lambda: questions("passages", 2, 20),
            metric="raw", groups=("core",),
        ),
        Task(name="kasus", language="de", kind="pair", items=lambda: questions("kasus", 2), groups=("german",)),
        Task(
            name="story", language="de", kind="gold", items=lambda: questions("story", 1), groups=("german",),
            about="Whole texts & their bits per byte.",
        ),
        Task(
            name="sums", language="", kind="generate",
            items=lambda: [Item(f"sums-{i}", context=f"{i} + 1 =", text=str(i + 1)) for i in range(ITEMS)],
            groups=("german",),
        ),
    )  # fmt: skip
    return {task.name: task for task in made}


def made_sample(item: Item, task: Task, good: float, rng: np.random.Generator, hard: float) -> dict[str, Any]:
    """What a model of this quality makes of an item of this hardness."""
    sample: dict[str, Any] = {
        "id": item.id, "source": item.source, "group": "", "gold": item.gold, "ids_hash": "0",
        "context_tokens": 5, "truncated": False, "merged": False,
    }  # fmt: skip
    if task.kind == "generate":
        right = int(good + rng.normal(0, 0.5) > hard)
        return {
            **sample,
            "choices": [],
            "right": right,
            "text": item.text if right else "7",
            "finish": "stop",
        }
    sample["choices"] = [
        {
            "logprob": float(-8 + (c == item.gold) * (good - hard) + rng.normal(0, 0.5)),
            "tokens": 4, "characters": len(choice) - 1, "bytes": len(choice) - 1, "greedy": False,
        }
        for c, choice in enumerate(item.choices)
    ]  # fmt: skip
    return {**sample, "right": None}


def made_board(leave_out: Sequence[tuple[str, str]] = ()) -> Leaderboard:
    """The board; leave_out: (model, task) without an evaluation."""
    found = tasks()
    hardness = {name: np.random.default_rng(n).normal(0, 1, ITEMS) for n, name in enumerate(found)}
    models = []
    for number, (model, parameters, flops, good) in enumerate(MODELS):
        rng, evaluations = np.random.default_rng(100 + number), {}
        for name, task in found.items():
            if (model, name) in leave_out:
                continue
            samples = [
                made_sample(item, task, good, rng, hard)
                for item, hard in zip(task.items(), hardness[name], strict=True)
            ]
            result = score_samples(samples, task.kind, task.metric, task.normalizations)
            more = {
                "task": name, "metric": task.metric, "chance": task.chance_of(list(task.items())),
                "task_hash": "abcdef0123456789", "weights_hash": f"{number}" * 64, "dtype": "float32",
                "bos": "BOS (id 1) before every context", "shots": 0, "tokens": 1000, "seconds": 1.5,
                "contamination": None,
            }  # fmt: skip
            if (model, name) == ("small", "quiz"):
                more["contamination"] = {
                    "n": 10, "n_items": 7, "share": 7 / 120, "covered": 0.4, "value_without": 0.25,
                }  # fmt: skip
            evaluations[name] = Evaluation({**result, **more}, samples)
        path = Path(f"/models/{model}")
        models.append(
            RankedModel(model, path, 700 if flops else 0, int(parameters), 2 * parameters, flops, evaluations)
        )
    return Leaderboard(models, found, {"core": ["quiz", "passages"], "german": ["kasus", "story", "sums"]})
