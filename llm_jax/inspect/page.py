"""The page: the values that `page.html.jinja` and `page.js` are filled with."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.arithmetic import finite
from llm_jax.core.format import short
from llm_jax.core.templates import render
from llm_jax.data.token_labels import Token
from llm_jax.inspect.analysis import AttentionMaps, Findings
from llm_jax.inspect.arguments import InspectArguments
from llm_jax.inspect.attention import FIRST_SCORED
from llm_jax.inspect.logit_lens import Predictions
from llm_jax.pretrained.model import PretrainedModel

LN2 = math.log(2)
HEADS_LISTED = 6
"""Number of heads listed for each score."""


def make_page(
    found: Findings, opened: PretrainedModel, arguments: InspectArguments, figures: dict[str, dict[str, str]]
) -> str:
    """The page as HTML. figures: from `write.draw`."""
    config = opened.config
    assert config.vocab is not None
    return render(
        "llm_jax.inspect",
        "page.html.jinja",
        title=title_of(arguments.path),
        path=arguments.path,
        step=opened.step,
        found=found,
        has_tokenizer=opened.tokenizer_if_any is not None,
        config=config,
        facts=facts(opened),
        arguments=arguments,
        figures=figures,
        cards=cards(found, opened),
        next_rows=next_rows(found),
        lens_rows=lens_rows(found),
        strongest=strongest(found),
        data=script_data(found),
        losses=losses(found),
        hues=[i % 6 for i in range(len(found.tokens))],
        know_nothing=math.log(config.vocab),
        from_position=FIRST_SCORED,
        weight_rows=weight_rows(found),
        changed_rows=changed_rows(found),
    )


def title_of(path: str) -> str:
    """Title of a page: experiment and run name of a run folder, else the name of the folder."""
    parts = [part for part in Path(path).parts if part not in ("/", "..", "runs", "default")] or [
        Path(path).resolve().name
    ]
    return parts[-1] if path.startswith("/") else "/".join(parts[-2:])


def cards(found: Findings, opened: PretrainedModel) -> list[tuple[str, str]]:
    """The headline numbers of the page: (number, description)."""
    mean = float(found.losses.mean())
    n = opened.program.parameter_count()
    config = opened.config
    right = float(np.mean(found.predictions.rank[:-1] == 1))
    made = [
        (short(n), f"parameters: {config.layers} layers of {config.heads} heads, width {config.embed}"),
        (
            f"{mean:.2f} nats",
            f"mean loss of {len(found.losses)} tokens: {mean / LN2:.2f} bits a token, perplexity "
            f"{math.exp(min(mean, 50)):,.1f}",
        ),
    ]
    if any(p.data for p in found.tokens[1:]):
        made.append(
            (f"{found.bits_per_byte:.2f} bits", "per byte of the text, which doesn't depend on the tokenizer")
        )
    return [*made, (f"{right:.0%}", "of the tokens were the model's first choice")]


def facts(opened: PretrainedModel) -> list[tuple[str, str]]:
    """Properties of the model for a table: (name, value)."""
    c = opened.config
    rows = [
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
        rows.append(("window", f"{c.window} tokens"))
    if c.moe.experts:
        rows.append(
            (
                "experts",
                f"{c.moe.experts}, of which a token goes to {c.moe.top_k}, in {len(c.sparse_layers)} layers",
            )
        )
    return rows


def losses(found: Findings) -> list[dict[str, Any]]:
    """Label, loss in nats and bits, and shade (0 to 1) of every token. The first has no loss."""
    made: list[dict[str, Any]] = [{"label": found.tokens[0].label, "loss": None}]
    for token, loss in zip(found.tokens[1:], found.losses, strict=True):
        made.append(
            {
                "label": token.label,
                "loss": float(loss),
                "bits": float(loss) / LN2,
                "shade": round(min(1.0, float(loss) / 10), 3),
            }
        )
    return made


def next_rows(found: Findings) -> list[dict[str, Any]]:
    """Rows of the table of predictions, one for each position."""
    p, rows = found.predictions, []
    for i, token in enumerate(found.tokens):
        actual = found.tokens[i + 1] if i + 1 < len(found.tokens) else None
        cells = [
            {
                "label": found.vocabulary[t].label,
                "p": float(q),
                "hit": actual is not None and int(t) == actual.id,
            }
            for t, q in zip(p.top_ids[i], p.top_probabilities[i], strict=True)
        ]
        row: dict[str, Any] = {
            "position": i,
            "label": token.label,
            "entropy": float(p.entropy[i]),
            "top": cells,
            "actual": None,
        }
        if actual is not None:
            row |= {
                "actual": actual.label,
                "rank": int(p.rank[i]),
                "p": math.exp(float(p.log_probability[i])),
                "loss": -float(p.log_probability[i]),
            }
        rows.append(row)
    return rows


def lens_rows(found: Findings) -> list[dict[str, Any]]:
    """Rows of the logit lens, last layer first: name and cells of each."""
    rows = []
    for number, p in reversed(list(enumerate(found.lens, -1))):
        cells = [lens_cell(found, p, i) for i in range(found.lens_length)]
        rows.append({"name": "embedding" if number < 0 else f"layer {number}", "cells": cells})
    return rows


def lens_cell(found: Findings, p: Predictions, i: int) -> dict[str, Any]:
    """One cell of the logit lens: the most likely token after a layer, at a position."""
    top, last = int(p.top_ids[i, 0]), i + 1 == len(found.tokens)
    actual = None if last else found.tokens[i + 1]
    return {
        "label": found.vocabulary[top].label,
        "p": float(p.top_probabilities[i, 0]),
        "hit": actual is not None and top == actual.id,
        "actual": ""
        if actual is None
        else f"; {actual.label} has {math.exp(float(p.log_probability[i])):.1%}, rank {int(p.rank[i])}",
    }


def strongest(found: Findings) -> dict[str, list[dict[str, Any]]]:
    """The heads with the highest value of each score (for entropy: the lowest)."""
    table = {
        "previous": found.scores.previous,
        "first": found.scores.first,
        "induction": found.induction,
        "entropy": found.scores.entropy,
    }
    made = {}
    for name, values in table.items():
        order = np.argsort(values if name == "entropy" else -values, axis=None, kind="stable")[:HEADS_LISTED]
        heads = [divmod(int(i), values.shape[1]) for i in order]
        made[name] = [
            {"layer": layer, "head": h, "value": float(values[layer, h]), "shown": layer in found.maps.layers}
            for layer, h in heads
        ]
    return made


def script_data(found: Findings) -> dict[str, Any]:
    """Data for page.js, which draws the attention maps."""
    scores = {
        "entropy": found.scores.entropy,
        "previous": found.scores.previous,
        "first": found.scores.first,
        "induction": found.induction,
    }
    return {
        "tokens": [p.label for p in found.tokens[: found.maps.length]],
        "layers": found.maps.layers,
        "heads": found.maps.weights.shape[1],
        "length": found.maps.length,
        "first": opening_map(found),
        "windows": [found.window[i] for i in found.maps.layers],
        "maps": packed_maps(found.maps),
        "scores": {name: [rounded(values[i]) for i in found.maps.layers] for name, values in scores.items()},
    }


def opening_map(found: Findings) -> tuple[int, int]:
    """(index into `maps.layers`, head) of the map that the page opens with: the one with the lowest
    entropy."""
    entropy = np.nan_to_num(found.scores.entropy[list(found.maps.layers)], nan=np.inf)
    layer, head = np.unravel_index(np.argmin(entropy), entropy.shape)
    return int(layer), int(head)


def rounded(values: np.ndarray) -> list[float | None]:
    """Numbers rounded to four decimals; None for what isn't finite."""
    return [finite(round(float(v), 4)) for v in values]


def packed_maps(maps: AttentionMaps) -> list[str]:
    """For each layer, base64 of bytes: for each head the rows of the lower triangle of its map, one byte a
    weight."""
    lower = np.tril_indices(maps.length)
    return [
        base64.b64encode(np.ascontiguousarray(layer[:, lower[0], lower[1]]).tobytes()).decode()
        for layer in maps.weights
    ]


def weight_rows(found: Findings) -> list[dict[str, Any]]:
    """Rows of the table of weight differences, one for each kind of weight, over its layers."""
    if found.comparison is None:
        return []
    rows = []
    for kind in dict.fromkeys(d.kind for d in found.comparison.weights):
        those = [d for d in found.comparison.weights if d.kind == kind]
        relative = [d.relative for d in those]
        rows.append({
            "kind": kind,
            "layers": len(those) if those[0].layer is not None else None,
            "numbers": short(sum(d.numbers for d in those)),
            "mean": float(np.mean(relative)),
            "least": min(relative),
            "most": max(relative),
            "cosine": min(d.cosine for d in those),
        })  # fmt: skip
    return rows


def changed_rows(found: Findings) -> list[dict[str, Any]]:
    """Rows of the table of positions at which the most likely token of two checkpoints differs."""
    if found.comparison is None:
        return []
    here, there, kl = found.predictions, found.comparison.predictions, found.comparison.divergence.kl

    def choice(p: Predictions, i: int) -> tuple[Token, float]:
        return found.vocabulary[p.top_ids[i, 0]], float(p.top_probabilities[i, 0])

    rows = []
    for i in found.comparison.changed:
        actual = found.tokens[i + 1].label if i + 1 < len(found.tokens) else None
        row = {"position": i, "label": found.tokens[i].label, "actual": actual, "kl": float(kl[i])}
        rows.append({**row, "here": choice(here, i), "there": choice(there, i)})
    return rows
