"""The page: what was found, as the values that `page.html.jinja` and `page.js` fill in."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.arithmetic import finite
from llm_jax.core.format import short
from llm_jax.core.templates import render
from llm_jax.inspect.analysis import Findings, Maps
from llm_jax.inspect.arguments import InspectArguments
from llm_jax.inspect.attention import FROM
from llm_jax.inspect.logit_lens import Predictions
from llm_jax.inspect.tokens import Token
from llm_jax.pretrained.model import PretrainedModel

LN2 = math.log(2)
STRONGEST = 6
"""Heads that are listed for each score."""


def make_page(found: Findings, opened: PretrainedModel, asked: InspectArguments, figures: dict[str, dict[str, str]]) -> str:
    """The whole page as HTML. figures: by name, each with "data" (a data URI), "caption" and "alt"."""
    config = opened.config
    assert config.vocab is not None
    return render(
        "llm_jax.inspect",
        "page.html.jinja",
        title=title_of(asked.path),
        path=asked.path,
        step=opened.step,
        found=found,
        has_tokenizer=opened.tokenizer_if_any is not None,
        config=config,
        facts=facts(opened),
        asked=asked,
        figures=figures,
        cards=cards(found, opened),
        next_rows=next_rows(found),
        lens_rows=lens_rows(found),
        strongest=strongest(found),
        data=script_data(found),
        losses=losses(found),
        hues=[i % 6 for i in range(len(found.parts))],
        know_nothing=math.log(config.vocab),
        from_position=FROM,
        weight_rows=weight_rows(found),
        changed_rows=changed_rows(found),
    )


def title_of(path: str) -> str:
    """What a run or a model is called: its experiment's and its own name."""
    parts = [part for part in Path(path).parts if part not in ("/", "..", "runs", "default")] or [Path(path).resolve().name]
    return parts[-1] if path.startswith("/") else "/".join(parts[-2:])


def cards(found: Findings, opened: PretrainedModel) -> list[tuple[str, str]]:
    """(number, what it is)."""
    mean = float(found.losses.mean())
    n = opened.program.parameter_count()
    config = opened.config
    right = float(np.mean(found.predictions.rank[:-1] == 1))
    made = [
        (short(n), f"parameters: {config.layers} layers of {config.heads} heads, width {config.embed}"),
        (f"{mean:.2f} nats", f"mean loss of {len(found.losses)} tokens: {mean / LN2:.2f} bits a token, perplexity {math.exp(min(mean, 50)):,.1f}"),
    ]
    if any(p.data for p in found.parts[1:]):
        made.append((f"{found.bits_per_byte:.2f} bits", "per byte of the text, which doesn't depend on the tokenizer"))
    return [*made, (f"{right:.0%}", "of the tokens were the model's first choice")]


def facts(opened: PretrainedModel) -> list[tuple[str, str]]:
    """What is worth knowing of the model, as (name, value)."""
    c = opened.config
    said = [
        ("layers", str(c.layers)),
        ("width of the stream", str(c.embed)),
        ("query heads, key/value heads", f"{c.heads}, {c.kv_heads}"),
        ("width of a head", str(c.head_dim)),
        ("feed-forward width", str(c.mlp)),
        ("vocabulary", f"{c.vocab:,}"),
        ("norm", f"{c.norm}, {c.norm_placement}"),
        ("activation", c.activation),
        ("positions", c.position if c.position == "learned" else f"rotary, base {c.rope_theta:g}"),
        ("computed in", c.compute_dtype),
    ]
    if c.window is not None:
        said.append(("window", f"{c.window} tokens"))
    if c.moe.experts:
        said.append(("experts", f"{c.moe.experts}, of which a token goes to {c.moe.top_k}, in {len(c.sparse_layers)} layers"))
    return said


def losses(found: Findings) -> list[dict[str, Any]]:
    """Of every token: its label, loss in nats and bits, and how dark it is drawn (0 to 1). The first has no loss."""
    made: list[dict[str, Any]] = [{"label": found.parts[0].label, "loss": None}]
    for piece, loss in zip(found.parts[1:], found.losses, strict=True):
        made.append({"label": piece.label, "loss": float(loss), "bits": float(loss) / LN2, "shade": round(min(1.0, float(loss) / 10), 3)})
    return made


def next_rows(found: Findings) -> list[dict[str, Any]]:
    """The table of what comes next: one row a position."""
    p, rows = found.predictions, []
    for i, piece in enumerate(found.parts):
        actual = found.parts[i + 1] if i + 1 < len(found.parts) else None
        cells = [
            {"label": found.vocabulary[t].label, "p": float(q), "hit": actual is not None and int(t) == actual.id}
            for t, q in zip(p.top_ids[i], p.top_probabilities[i], strict=True)
        ]
        row: dict[str, Any] = {"position": i, "label": piece.label, "entropy": float(p.entropy[i]), "top": cells, "actual": None}
        if actual is not None:
            row |= {"actual": actual.label, "rank": int(p.rank[i]), "p": math.exp(float(p.log_probability[i])), "loss": -float(p.log_probability[i])}
        rows.append(row)
    return rows


def lens_rows(found: Findings) -> list[dict[str, Any]]:
    """The logit lens, last layer on top: each row's name and cells."""
    rows = []
    for number, p in reversed(list(enumerate(found.lens, -1))):
        cells = [lens_cell(found, p, i) for i in range(found.lens_length)]
        rows.append({"name": "embedding" if number < 0 else f"layer {number}", "cells": cells})
    return rows


def lens_cell(found: Findings, p: Predictions, i: int) -> dict[str, Any]:
    """What a layer would say at a position."""
    top, last = int(p.top_ids[i, 0]), i + 1 == len(found.parts)
    actual = None if last else found.parts[i + 1]
    return {
        "label": found.vocabulary[top].label,
        "p": float(p.top_probabilities[i, 0]),
        "hit": actual is not None and top == actual.id,
        "actual": "" if actual is None else f"; {actual.label} has {math.exp(float(p.log_probability[i])):.1%}, rank {int(p.rank[i])}",
    }


def strongest(found: Findings) -> dict[str, list[dict[str, Any]]]:
    """For each score the heads that have most of it (of entropy: least), with what a head that looks evenly would have."""
    table = {"previous": found.scores.previous, "first": found.scores.first, "induction": found.induction, "entropy": found.scores.entropy}
    made = {}
    for name, values in table.items():
        order = np.argsort(values if name == "entropy" else -values, axis=None, kind="stable")[:STRONGEST]
        heads = [divmod(int(i), values.shape[1]) for i in order]
        made[name] = [{"layer": layer, "head": h, "value": float(values[layer, h]), "shown": layer in found.maps.layers} for layer, h in heads]
    return made


def script_data(found: Findings) -> dict[str, Any]:
    """What the page's script needs to draw attention maps."""
    scores = {"entropy": found.scores.entropy, "previous": found.scores.previous, "first": found.scores.first, "induction": found.induction}
    return {
        "tokens": [p.label for p in found.parts[: found.maps.length]],
        "layers": found.maps.layers,
        "heads": found.maps.weights.shape[1],
        "length": found.maps.length,
        "first": first_shown(found),
        "windows": [found.window[i] for i in found.maps.layers],
        "maps": packed(found.maps),
        "scores": {name: [rounded(values[i]) for i in found.maps.layers] for name, values in scores.items()},
    }


def first_shown(found: Findings) -> tuple[int, int]:
    """(index of the layer among those with maps, head) of the map that the page opens with: the most pointed one."""
    entropy = np.nan_to_num(found.scores.entropy[list(found.maps.layers)], nan=np.inf)
    layer, head = np.unravel_index(np.argmin(entropy), entropy.shape)
    return int(layer), int(head)


def rounded(values: np.ndarray) -> list[float | None]:
    """Numbers with four decimals; None for what isn't one."""
    return [finite(round(float(v), 4)) for v in values]


def packed(maps: Maps) -> list[str]:
    """Of each layer: for each head, row by row, the weights on the keys up to the query, a byte each, all as base64."""
    lower = np.tril_indices(maps.length)
    return [base64.b64encode(np.ascontiguousarray(layer[:, lower[0], lower[1]]).tobytes()).decode() for layer in maps.weights]


def weight_rows(found: Findings) -> list[dict[str, Any]]:
    """The weights of two checkpoints: those of no layer, then the kinds, each over its layers."""
    if found.comparison is None:
        return []
    rows = []
    for kind in dict.fromkeys(d.kind for d in found.comparison.weights):
        those = [d for d in found.comparison.weights if d.kind == kind]
        relative = [d.relative for d in those]
        rows.append({
            "kind": kind, "layers": len(those) if those[0].layer is not None else None, "numbers": short(sum(d.numbers for d in those)),
            "mean": float(np.mean(relative)), "least": min(relative), "most": max(relative), "cosine": min(d.cosine for d in those),
        })  # fmt: skip
    return rows


def changed_rows(found: Findings) -> list[dict[str, Any]]:
    """The positions at which two checkpoints' first choices differ."""
    if found.comparison is None:
        return []
    here, there, kl = found.predictions, found.comparison.predictions, found.comparison.divergence.kl

    def choice(p: Predictions, i: int) -> tuple[Token, float]:
        return found.vocabulary[p.top_ids[i, 0]], float(p.top_probabilities[i, 0])

    rows = []
    for i in found.comparison.changed:
        actual = found.parts[i + 1].label if i + 1 < len(found.parts) else None
        row = {"position": i, "label": found.parts[i].label, "actual": actual, "kl": float(kl[i])}
        rows.append({**row, "here": choice(here, i), "there": choice(there, i)})
    return rows
