"""The figures of a page, in the style of the scaling report. Each function returns one figure, or None if
there is nothing to show."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from llm_jax.core.figure_style import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, WIDTH, new_figure
from llm_jax.inspect.analysis import Findings

SEQUENTIAL_COLOURS = ("#ffffff", "#9ecae1", "#3182bd", "#08306b")
"""Colours for amounts, from white for zero. (On a dark page figures are inverted: black.)"""
MAX_LABELS = 48
"""Maximum tokens labelled along an axis."""
MAX_PANELS = 8
"""Maximum layers, and heads, in a figure of small maps."""
MIN_SIDE = 24
"""Minimum pixels along the side of a small map, so that the gaps between maps are visible."""


@dataclass(frozen=True)
class InspectFigure:
    """A figure and its texts."""

    name: str
    """Name of the file, without .png."""
    figure: Figure
    caption: str
    alt: str
    """Text description, for readers who can't see the figure."""


def loss(found: Findings) -> InspectFigure:
    """Bars of the loss of every token, and the entropy of its prediction."""
    figure, ax = new_figure(2.3)
    losses, T = found.losses, len(found.tokens)
    x = np.arange(1, T)
    ax.bar(x, losses, color=BLUE, width=0.8 if T < 200 else 1.0, label="loss of the actual token")
    ax.plot(
        x,
        found.predictions.entropy[:-1],
        color=ORANGE,
        lw=1.1,
        marker="o" if T < 60 else None,
        ms=2.5,
        label="entropy: the loss that the model expected",
    )
    ax.axhline(losses.mean(), color=MUTED, lw=0.8, ls="--", label=f"mean loss, {losses.mean():.2f}")
    label_tokens(ax, [p.label for p in found.tokens[1:]], 1)
    ax.set_ylabel("nats")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper right", ncols=3)
    ax.set_ylim(0, 1.22 * max(losses.max(), found.predictions.entropy[:-1].max()))
    caption = (
        "Loss of each token, given those before it, and the entropy of that prediction. "
        "Where a bar is above the line, the token was less likely than the model expected."
    )
    return InspectFigure(
        "loss", figure, caption, f"Bars of loss at {T - 1} tokens, mean {losses.mean():.2f} nats"
    )


def attention(found: Findings) -> InspectFigure:
    """Small attention maps of heads. They are one image, because matplotlib takes long to draw that many
    axes."""
    maps = found.maps
    rows, columns = evenly_spaced(len(maps.layers)), evenly_spaced(maps.weights.shape[1])
    cell = -(-MIN_SIDE // maps.length)
    T = maps.length * cell
    gap, top = round(0.12 * T), round(0.24 * T)  # room for a label above each map
    grid = np.zeros((len(rows) * (T + top), len(columns) * (T + gap)))
    figure, ax = new_figure(min(WIDTH / grid.shape[1], 1.0 / T) * grid.shape[0] + 0.2)
    for y, i in zip(range(top, grid.shape[0], T + top), rows, strict=True):
        for x, h in zip(range(0, grid.shape[1], T + gap), columns, strict=True):
            grid[y : y + T, x : x + T] = np.sqrt(maps.weights[i, h] / 255).repeat(cell, 0).repeat(cell, 1)
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), T, T, fill=False, ec=FAINT, lw=0.7))
            ax.text(
                x + (T - 1) / 2,
                y - 0.5 - top / 12,
                f"{maps.layers[i]}.{h}",
                fontsize=6.5,
                ha="center",
                va="bottom",
                color=INK,
            )
    ax.imshow(grid, cmap=colour_map(), vmin=0, vmax=1, interpolation="nearest")
    ax.axis("off")
    shown = len(rows) * len(columns)
    all_heads = maps.weights.shape[0] * maps.weights.shape[1]
    of = f"{shown} of the {all_heads} heads, evenly spread" if shown < all_heads else "all heads"
    caption = (
        f"Attention of {of}, as layer.head: rows are queries from the first token down, columns keys. "
        "Colour: the square root of the weight."
    )
    return InspectFigure("attention", figure, caption, f"Attention maps of {shown} heads")


def heads(found: Findings) -> InspectFigure:
    """Heat maps of the four head scores, layer by head."""
    figure, axes = new_figure(0.9 + 0.16 * min(found.induction.shape[0], 40), 4, sharey=True)
    titles = ("entropy, nats", "previous token", "first token", "induction")
    for ax, title, values in zip(axes, titles, (*found.scores, found.induction), strict=True):
        shown = ax.imshow(
            values, cmap=colour_map(), vmin=0, vmax=scale_top(values), aspect="auto", interpolation="nearest"
        )
        ax.set_title(title)
        ax.set_xlabel("head")
        ax.grid(visible=False)
        integer_ticks(ax)
        figure.colorbar(shown, ax=ax, orientation="horizontal", pad=0.02, aspect=18).outline.set_visible(
            False
        )
    axes[0].set_ylabel("layer")
    return InspectFigure(
        "heads",
        figure,
        "The scores of every head, defined above. Each score has its own scale, up to its largest value.",
        "Four heat maps of head scores",
    )


def lens(found: Findings) -> InspectFigure:
    """Heat map of the probability of the actual next token, by layer and position."""
    T = found.lens_length
    probability = np.exp(np.stack([p.log_probability for p in found.lens]))[
        :, : T if len(found.tokens) > T else T - 1
    ]
    figure, ax = new_figure(1.1 + 0.17 * min(len(probability), 40))
    shown = ax.imshow(
        probability,
        cmap=colour_map(),
        vmin=0,
        vmax=scale_top(probability),
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    ax.set_yticks(
        range(len(probability)),
        ["embedding", *(str(i) for i in range(len(probability) - 1))] if len(probability) <= 40 else None,
    )
    label_tokens(ax, [p.label for p in found.tokens[: probability.shape[1]]], 0)
    ax.set_ylabel("after layer")
    ax.grid(visible=False)
    figure.colorbar(shown, ax=ax, pad=0.01, aspect=20, label="probability").outline.set_visible(False)
    caption = (
        "The probability of the actual next token, read from the stream after each layer through the "
        "final norm and head. "
        "Along the axis: the last token read."
    )
    return InspectFigure(
        "lens", figure, caption, "Heat map of the probability of the next token by layer and position"
    )


def experts(found: Findings) -> InspectFigure | None:
    """Heat map of the share of the text's tokens that each expert got, by layer."""
    if not found.routed:
        return None
    count = max(int(r.experts.max()) for r in found.routed) + 1
    load = np.stack(
        [np.bincount(r.experts.reshape(-1), minlength=count) / len(r.experts) for r in found.routed]
    )
    figure, ax = new_figure(1.0 + 0.2 * min(len(load), 30))
    shown = ax.imshow(load, cmap=colour_map(), vmin=0, aspect="auto", origin="lower", interpolation="nearest")
    ax.set_yticks(range(len(load)), [str(r.layer) for r in found.routed] if len(load) <= 30 else None)
    ax.set_xlabel("expert")
    ax.set_ylabel("layer")
    ax.grid(visible=False)
    figure.colorbar(shown, ax=ax, pad=0.01, aspect=20, label="share of tokens").outline.set_visible(False)
    return InspectFigure(
        "experts",
        figure,
        "The share of the text's tokens that was routed to each expert, layer by layer.",
        "Heat map of loads by layer and expert",
    )


def word_cosine(found: Findings) -> InspectFigure | None:
    """Cosine similarity of the word's two vectors, layer by layer."""
    if found.word is None:
        return None
    w = found.word
    figure, ax = new_figure(2.3)
    x = np.arange(len(w.cosines))
    ax.plot(
        x, w.cosines, color=BLUE, marker="o", ms=3.5, label=drawable_label(f"“{w.word}” and “{w.word}”", 60)
    )
    ax.plot(x, w.baseline, color=MUTED, ls="--", lw=1.1, label="any two different tokens, on average")
    layer_ticks(ax, len(x))
    ax.set_ylabel("cosine similarity")
    ax.set_ylim(min(0.0, float(np.nanmin(w.baseline)), float(w.cosines.min())) - 0.05, 1.05)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    caption = (
        "Cosine similarity of the word's two vectors, before the first layer and after each. "
        "The dashed line is the mean over pairs of different tokens of the contexts."
    )
    return InspectFigure(
        "word_cosine",
        figure,
        caption,
        f"Cosine similarity falls from {w.cosines[0]:.2f} to {w.cosines[-1]:.2f}",
    )


def word_path(found: Findings) -> InspectFigure | None:
    """The path of the word's two vectors through the layers, on two principal axes."""
    if found.word is None:
        return None
    w = found.word
    figure, ax = new_figure(3.4)
    for points, color, text, marker in zip(w.path, (BLUE, ORANGE), w.contexts, "os", strict=True):
        ax.plot(*points.T, color=color, lw=1.2, marker=marker, ms=4, label=drawable_label(f"“{text}”", 60))
        for layer, point in enumerate(points):
            if len(points) <= 14 or layer % (len(points) // 10) == 0 or layer == len(points) - 1:
                ax.annotate(
                    "embedding" if layer == 0 else str(layer - 1),
                    point,
                    (4, 4),
                    textcoords="offset points",
                    fontsize=6.5,
                    color=INK,
                )
    ax.set_xlabel(f"first axis, {w.explained[0]:.0%} of the variance")
    ax.set_ylabel(f"second axis, {w.explained[1]:.0%}")
    ax.margins(0.1)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    return InspectFigure(
        "word_path",
        figure,
        "The word's vectors at unit length, on their two principal axes; numbers are layers.",
        "Two paths through the layers",
    )


def tokenizers(found: Findings) -> InspectFigure | None:
    """Bars of bytes per token, for every tokenizer and sample."""
    if not found.tokenizers:
        return None
    names = [m.sample.name for m in found.tokenizers[0].measured]
    colors = [BLUE, ORANGE, GREEN, PURPLE, SKY, MUTED]
    figure, ax = new_figure(2.3 + 0.09 * len(found.tokenizers))
    wide = 0.8 / len(found.tokenizers)
    for i, one in enumerate(found.tokenizers):
        x = np.arange(len(names)) + (i - (len(found.tokenizers) - 1) / 2) * wide
        label = drawable_label(
            f" {shortened(one.name, 40, end=True)}, {one.vocab_size:,} tokens", 80
        )  # matplotlib's legends omit labels that begin with _
        ax.bar(
            x,
            [m.bytes_per_token for m in one.measured],
            wide * 0.92,
            color=colors[i % len(colors)],
            label=label,
        )
    ax.set_xticks(range(len(names)), names)
    ax.set_ylabel("bytes per token")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    caption = (
        "Bytes per token on the built-in samples; higher means fewer tokens for a text. "
        "(Russian takes two bytes a letter, Chinese three a character.)"
    )
    return InspectFigure("tokenizers", figure, caption, "Bars of bytes per token by sample and tokenizer")


def weight_difference(found: Findings) -> InspectFigure | None:
    """Heat map of relative weight differences, by kind and layer."""
    if found.comparison is None:
        return None
    layered = [d for d in found.comparison.weights if d.layer is not None]
    kinds = list(dict.fromkeys(d.kind for d in layered))
    layers = sorted({d.layer for d in layered if d.layer is not None})
    table = np.full((len(kinds), len(layers)), np.nan)
    for d in layered:
        table[kinds.index(d.kind), layers.index(d.layer or 0)] = d.relative
    table[np.isinf(table)] = np.nan
    figure, ax = new_figure(1.0 + 0.18 * len(kinds))
    shown = ax.imshow(table, cmap=colour_map(), vmin=0, aspect="auto", interpolation="nearest")
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set_xlabel("layer")
    ax.grid(visible=False)
    integer_ticks(ax, y=False)
    figure.colorbar(shown, ax=ax, pad=0.01, aspect=20, label="|other − this| / |this|").outline.set_visible(
        False
    )
    caption = (
        "Relative difference of the weights, by kind and layer: the norm of the difference over the norm "
        "of this checkpoint's weight."
    )
    return InspectFigure("weight_difference", figure, caption, "Heat map of relative weight differences")


def divergence(found: Findings) -> InspectFigure | None:
    """Bars of the divergence of two checkpoints' predictions, by position."""
    if found.comparison is None:
        return None
    c = found.comparison
    figure, ax = new_figure(2.3)
    x = np.arange(len(c.divergence.kl))
    changed = np.isin(x, c.changed)
    ax.bar(x, c.divergence.kl, color=np.where(changed, ORANGE, SKY), width=0.8 if len(x) < 200 else 1.0)
    for color, text in ((ORANGE, "the most likely next token differs"), (SKY, "it is the same")):
        ax.bar([0], [0], color=color, label=text)
    label_tokens(ax, [p.label for p in found.tokens], 0)
    ax.set_ylabel("KL(this ‖ other), nats")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper right", ncols=2)
    ax.set_ylim(0, 1.2 * float(c.divergence.kl.max()) or 1.0)  # 1 for a checkpoint compared with itself
    caption = "Divergence of the predictions at each position. Along the axis: the last token read."
    return InspectFigure(
        "divergence", figure, caption, f"Bars of divergence, mean {c.divergence.kl.mean():.3g} nats"
    )


FIGURES: tuple[Callable[[Findings], InspectFigure | None], ...] = (
    loss, attention, heads, lens, experts, word_cosine, word_path, tokenizers, weight_difference, divergence,
)  # fmt: skip


def colour_map() -> Any:
    """`SEQUENTIAL_COLOURS` as a colour map, with grey for missing values."""
    return LinearSegmentedColormap.from_list("more", SEQUENTIAL_COLOURS).with_extremes(bad=FAINT)


def scale_top(values: np.ndarray) -> float:
    """Upper end of a colour scale from 0: the largest finite value, but at least 0.05, so that noise stays
    pale."""
    return max(float(np.max(values, where=np.isfinite(values), initial=0.0)), 0.05)


def label_tokens(ax: Axes, labels: list[str], first: int) -> None:
    """Labels the x axis with tokens, at most `MAX_LABELS`. first: x of the first token."""
    every = -(-len(labels) // MAX_LABELS)
    named = [drawable_label(label) for label in labels[::every]]
    ax.set_xticks(
        range(first, first + len(labels), every),
        named,
        rotation=60,
        ha="right",
        rotation_mode="anchor",
        fontsize=6.5,
    )
    ax.set_xlim(first - 0.6, first + len(labels) - 0.4)


def drawable_label(label: str, limit: int = 12) -> str:
    """A label that matplotlib can draw: shortened, without formulas, □ for characters that its font lacks."""
    return "".join(c if ord(c) in drawable() else "□" for c in shortened(label, limit)).replace("$", r"\$")


@functools.cache
def drawable() -> frozenset[int]:
    """Code points of the characters in the figures' font."""
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def shortened(text: str, limit: int, end: bool = False) -> str:
    """The text, shortened to `limit` characters with … at its end, or at its beginning if `end` is to
    stay."""
    return text if len(text) <= limit else f"…{text[1 - limit :]}" if end else f"{text[: limit - 1]}…"


def evenly_spaced(count: int) -> list[int]:
    """At most `MAX_PANELS` indices below `count`, evenly spaced."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, MAX_PANELS))})


def integer_ticks(ax: Any, y: bool = True) -> None:
    """Sets ticks at whole numbers along x, and along y if `y`."""
    for axis in (ax.xaxis, ax.yaxis) if y else (ax.xaxis,):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))


def layer_ticks(ax: Axes, count: int) -> None:
    """Labels the x axis: embedding, then layers."""
    every = -(-count // 20)
    ax.set_xticks(range(0, count, every), ["embedding", *(str(i) for i in range(count - 1))][::every])
    ax.set_xlabel("after layer")
