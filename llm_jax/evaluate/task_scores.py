"""From samples to scores: every number of a task's result is a function of its samples alone. Imports no JAX.

A sample is what a model did with an item:

    id, source, group, gold      as the item has them (`tasks.task.Item`)
    ids_hash                     of the token ids that the model read
    context_tokens               tokens of the longest context, BOS included
    truncated, merged            whether a context was cut on its left; whether a boundary was inside a token
    longer                       whether it is longer than the rows that the model was trained on
    choices                      for each: logprob (nats, the sum over its tokens), tokens, characters, bytes,
                                 greedy (every token is the most likely one), unconditional (its logprob after
                                 the item's unconditional context; absent without one)
    right                        the share of the answer that is right: 1, 0, or 1/k where k choices tie
    text, finish                 of a generated answer: the first text, and why it ended
    passed, samples              of code: programs that passed the tests, of so many

Characters and bytes of a choice don't count the one space that parts it from its context (as in
lm-evaluation-harness, whose choices have none, and OLMo).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.core.arithmetic import finite
from llm_jax.evaluate.samples import Sample
from llm_jax.evaluate.statistics import Estimate, partly_right, pass_at_k, proportion, ratio
from llm_jax.evaluate.tasks.task import Kind, Normalization

BITS = 1 / math.log(2)
"""Bits in a nat."""


def normalized(choice: Mapping[str, Any], by: Normalization) -> float:
    """The log-probability of a choice, in a normalization.

    >>> normalized({"logprob": -6.0, "tokens": 2, "characters": 3, "bytes": 4}, "per_token")
    -3.0
    """
    logprob = float(choice["logprob"])
    if by == "pmi":
        return logprob - float(choice["unconditional"])
    units = {"raw": 1, "per_token": choice["tokens"], "per_character": choice["characters"]}
    return logprob / max(1, units.get(by, choice["bytes"]))


def right_by(sample: Sample, by: Normalization) -> float:
    """1 if the gold choice has the largest normalized log-probability, 0 if another has; 1/k if it is one of
    k that have, so that a model to which all choices are equal scores what a guess does."""
    values = [normalized(choice, by) for choice in sample["choices"]]
    best = max(values)
    return (values[sample["gold"]] == best) / values.count(best)


def bits_and_bytes(sample: Sample) -> tuple[float, int]:
    """(bits of the right answer, its UTF-8 bytes)."""
    gold = sample["choices"][sample["gold"]]
    return -gold["logprob"] * BITS, max(1, gold["bytes"])


def clusters_of(samples: Sequence[Sample]) -> list[str] | None:
    """The cluster of each sample; None where every item stands alone."""
    if not any(sample.get("source") for sample in samples):
        return None
    return [sample.get("source") or f"item {sample['id']}" for sample in samples]


def estimate(samples: Sequence[Sample], kind: Kind, metric: str) -> Estimate:
    """The score of samples in a metric of their kind, with its standard error and 95% interval.

    metric: a normalization of choice and pair; greedy (cloze), exact (generate), pass@K (code);
    bits_per_byte and perplexity (of the right answer, per token) wherever samples have choices.
    """
    clusters = clusters_of(samples)
    if metric == "bits_per_byte":
        bits, sizes = zip(*map(bits_and_bytes, samples), strict=True)
        return ratio(bits, sizes, clusters)
    if metric.startswith("pass@"):
        k = int(metric.removeprefix("pass@"))
        values = [pass_at_k(s["samples"], s["passed"], k) for s in samples]
    else:
        values = [right_by(s, metric) if kind in ("choice", "pair") else float(s["right"]) for s in samples]  # type: ignore[arg-type]
    whole = all(value in (0, 1) for value in values)
    return proportion(values, clusters) if whole else partly_right(values, clusters)


def metrics_of(samples: Sequence[Sample], kind: Kind, normalizations: Sequence[str]) -> list[str]:
    """The metrics in which samples of a kind can be scored: all of which are in a result."""
    found = list(normalizations) if kind == "choice" else []
    if kind == "choice" and all("unconditional" in choice for s in samples for choice in s["choices"]):
        found.append("pmi")
    if kind == "pair":
        found = ["raw", "per_token", "per_character"]
    if kind in ("cloze", "generate"):
        found.append({"cloze": "greedy", "generate": "exact"}[kind])
    if kind == "code" and all("samples" in sample for sample in samples):
        drawn = min(sample["samples"] for sample in samples)
        found += [f"pass@{k}" for k in (1, 2, 5, 10, 20, 50, 100) if k <= drawn]
    if all(sample.get("choices") for sample in samples):
        found.append("bits_per_byte")
    return found


def as_json(found: Estimate) -> dict[str, Any]:
    """A score as results have it; what is not finite is null."""
    return {
        "value": finite(found.value),
        "stderr": finite(found.stderr),
        "ci95": [finite(bound) for bound in found.ci95],
    }


def score_samples(
    samples: Sequence[Sample], kind: Kind, metric: str, normalizations: Sequence[str]
) -> dict[str, Any]:
    """The part of a result that follows from the samples: value, stderr, ci95, n and counts; `metrics` has
    every metric of the kind, `groups` the primary one for each group of items, and gold_bits_per_byte the
    bits per byte of the right answers. The order of the samples doesn't matter."""
    samples = sorted(samples, key=lambda sample: sample["id"])  # a bootstrap draws by place
    primary = estimate(samples, kind, metric)
    metrics = {
        name: as_json(primary if name == metric else estimate(samples, kind, name))
        for name in dict.fromkeys([metric, *metrics_of(samples, kind, normalizations)])
    }
    names = sorted({sample.get("group") or "" for sample in samples} - {""})
    parts = {name: [sample for sample in samples if sample.get("group") == name] for name in names}
    return {
        **as_json(primary),
        "n": len(samples),
        "clusters": primary.clusters,
        "n_truncated": sum(bool(sample["truncated"]) for sample in samples),
        "n_merged": sum(bool(sample["merged"]) for sample in samples),
        "n_longer_than_trained": sum(bool(sample.get("longer")) for sample in samples),
        "n_ended_by_length": sum(sample.get("finish") in ("max_tokens", "positions") for sample in samples),
        "gold_bits_per_byte": metrics.get("bits_per_byte", {}).get("value"),
        "metrics": metrics,
        "groups": {
            name: {**as_json(estimate(part, kind, metric)), "n": len(part)} for name, part in parts.items()
        },
    }
