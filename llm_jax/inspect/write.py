"""Writes inspect.html, figures/*.png and inspect.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.arithmetic import finite
from llm_jax.core.figure_style import save, styled
from llm_jax.core.files import write_atomic
from llm_jax.inspect.analysis import Findings
from llm_jax.inspect.arguments import InspectArguments
from llm_jax.inspect.figures import FIGURES
from llm_jax.inspect.logit_lens import Predictions
from llm_jax.inspect.page import make_page, packed_maps, rounded, weight_rows
from llm_jax.pretrained.model import PretrainedModel


def write_page(found: Findings, opened: PretrainedModel, arguments: InspectArguments, folder: Path) -> Path:
    """Writes all files into a folder (created if missing) and returns the path of the page."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figures = draw(found, folder / "figures")
    write_atomic(
        folder / "inspect.json",
        (
            json.dumps(to_json(found, opened, arguments), ensure_ascii=False, allow_nan=False, indent=1)
            + "\n"
        ).encode(),
    )
    write_atomic(folder / "inspect.html", make_page(found, opened, arguments, figures).encode())
    return folder / "inspect.html"


def draw(found: Findings, folder: Path) -> dict[str, dict[str, str]]:
    """Writes all figures as PNGs. Returns for the page, by name: "data" (its SVG as a data URI), "caption"
    and "alt" (a text description)."""
    made = {}
    with styled():
        for function in FIGURES:
            if (drawn := function(found)) is not None:
                data = save(drawn.figure, folder / f"{drawn.name}.png")
                made[drawn.name] = {
                    "name": drawn.name,
                    "data": data,
                    "caption": drawn.caption,
                    "alt": drawn.alt,
                }
    for name in {function.__name__ for function in FIGURES} - set(
        made
    ):  # figures of an earlier page; other pictures stay
        (folder / f"{name}.png").unlink(missing_ok=True)
    return made


def to_json(found: Findings, opened: PretrainedModel, arguments: InspectArguments) -> dict[str, Any]:
    """The content of inspect.json: all numbers of the page. Its keys are stable."""
    losses = [None, *numbers(found.losses)]
    tokens = [
        {"id": part.id, "bytes": part.data.hex(), "label": part.label, "loss": loss}
        for part, loss in zip(found.tokens, losses, strict=True)
    ]
    scores = {
        "entropy": found.scores.entropy,
        "previous": found.scores.previous,
        "first": found.scores.first,
        "induction": found.induction,
    }
    made: dict[str, Any] = {
        "model": arguments.path,
        "step": opened.step,
        "tokens": tokens,
        "tokens_in_text": found.all_tokens,
        "loss": {"nats": float(found.losses.mean()), "bits_per_byte": found.bits_per_byte},
        "predictions": [prediction(found, i) for i in range(len(found.tokens))],
        "logit_lens": [lens_row(number, p) for number, p in enumerate(found.lens, -1)],
        "head_scores": {name: [rounded(row) for row in values] for name, values in scores.items()},
        "induction_tokens": found.repeated,
        "attention": {
            "format": "by layer: base64 of bytes, weight = byte / 255; heads in turn, of each the rows of "
            "the lower triangle",
            "layers": found.maps.layers,
            "length": found.maps.length,
            "maps": packed_maps(found.maps),
        },
        "experts": [
            {"layer": r.layer, "experts": r.experts.tolist(), "weights": [numbers(row) for row in r.shares]}
            for r in found.routed
        ],
        "word": found.word.to_json() if found.word else None,
        "tokenizers": {c.name: {m.sample.name: m.to_json() for m in c.measured} for c in found.tokenizers},
    }
    if found.comparison is not None:
        c = found.comparison
        made["comparison"] = {
            "other": c.other,
            "weights": [
                {"kind": d.kind, "layer": d.layer, "relative": finite(d.relative), "cosine": d.cosine}
                for d in c.weights
            ],
            "kl": numbers(c.divergence.kl),
            "kl_back": numbers(c.divergence.kl_back),
            "largest_logit_difference": numbers(c.divergence.largest),
            "top_1_changes_at": c.changed,
            "weights_by_kind": [{k: finite(v) for k, v in row.items()} for row in weight_rows(found)],
        }
    return made


def prediction(found: Findings, i: int) -> dict[str, Any]:
    """The prediction at a position, and the actual next token with its rank and probability."""
    p = found.predictions
    made = {
        "top": [[int(t), float(q)] for t, q in zip(p.top_ids[i], p.top_probabilities[i], strict=True)],
        "entropy": float(p.entropy[i]),
    }
    if i + 1 == len(found.tokens):
        return made
    return {
        **made,
        "next": found.tokens[i + 1].id,
        "rank": int(p.rank[i]),
        "probability": math.exp(float(p.log_probability[i])),
    }


def lens_row(layer: int, p: Predictions) -> dict[str, Any]:
    """The logit lens after a layer; -1 is the embedding."""
    top = {"top_id": p.top_ids[:, 0].tolist(), "top_probability": numbers(p.top_probabilities[:, 0])}
    return {"layer": layer, **top, "next_log_probability": numbers(p.log_probability)}


def numbers(values: np.ndarray) -> list[float | None]:
    """A list of floats for JSON; None for what isn't finite."""
    return [finite(float(v)) for v in values]
