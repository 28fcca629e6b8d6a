"""Everything that a page shows, computed from one opened model: one pass over the text, one over random tokens, one over two contexts."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax.core.errors import UserError, require
from llm_jax.data import Tokenizer, load_tokenizer
from llm_jax.inspect.arguments import MOST_TOKENS, InspectArguments
from llm_jax.inspect.attention import HeadScores, even_scores, head_scores, induction_score, quantised
from llm_jax.inspect.compare import Comparison, compare
from llm_jax.inspect.contexts import WordInContexts, mean_cosine
from llm_jax.inspect.layer_by_layer import Walk
from llm_jax.inspect.logit_lens import Predictions, Readout
from llm_jax.inspect.tokenizers import Compared, measure
from llm_jax.inspect.tokens import Token, Vocabulary, find_word
from llm_jax.model.config import ModelConfig
from llm_jax.pretrained.model import OUTPUTS_NAN, PretrainedModel

MOST_MAP_BYTES = 6 << 20
"""Of all attention maps of a page, a byte a weight."""
MOST_LENS_CELLS = 4000
REPEATED = 32
"""Random tokens that come twice, for the induction score."""
RANDOM_ROWS = 4
EXAMPLE = ("bank", ("They rowed the boat across the river to the bank", "She took the money that she had saved to the bank"))
"""A word and two contexts, where no others are asked for: it comes last, since what follows a word can't change it."""


@dataclass(frozen=True)
class Maps:
    """The attention of some layers to the first tokens of the text."""

    layers: tuple[int, ...]
    length: int
    weights: np.ndarray
    """uint8 [layers, H, length, length] in 1/255."""


@dataclass(frozen=True)
class Routed:
    """Where the tokens of the text went in a layer with experts."""

    layer: int
    experts: np.ndarray
    """int32 [T, k], those with the largest weights first."""
    shares: np.ndarray
    """float32 [T, k]."""


@dataclass(frozen=True)
class Findings:
    """What there is to show."""

    vocabulary: Vocabulary
    parts: list[Token]
    """The text's tokens, with BOS in front."""
    all_tokens: int
    """How many the whole text has: more than there are parts, where only the first were asked for."""
    window: list[int | None]
    """Of every layer."""
    predictions: Predictions
    """At each part, of the next one; what followed the last isn't known."""
    lens: list[Predictions]
    """The same read from the stream before the first layer and after each, for the first parts."""
    lens_length: int
    maps: Maps
    scores: HeadScores
    """[L, H] each."""
    induction: np.ndarray
    """[L, H]."""
    even: HeadScores
    """Of a head that looks everywhere alike."""
    even_induction: float
    """The induction score of such a head."""
    repeated: int
    """Tokens that came twice for the induction score."""
    routed: list[Routed]
    word: WordInContexts | None
    tokenizers: list[Compared]
    comparison: Comparison | None

    @property
    def losses(self) -> np.ndarray:
        """float32 [T - 1], nats: entry i is of part i + 1, foretold from those before it."""
        return -self.predictions.log_probability[:-1]

    @property
    def bits_per_byte(self) -> float:
        """Of the parts that are foretold."""
        return float(self.losses.sum()) / math.log(2) / max(1, sum(len(p.data) for p in self.parts[1:]))


def find(opened: PretrainedModel, asked: InspectArguments) -> Findings:
    """Raises UserError for what this model can't be asked, before it computes anything."""
    config, tokenizer, vocabulary = opened.config, opened.tokenizer_if_any, Vocabulary(opened.tokenizer_if_any)
    ids, count = tokens_of(opened, asked)
    layers = asked.layers if asked.layers is not None else tuple(range(config.layers))
    for layer in layers:
        if layer >= config.layers:
            raise UserError(f"layers={','.join(map(str, layers))}: there is no layer {layer}; the model has {config.layers}, from 0 on")
    followed = word_in_contexts(opened, asked, vocabulary)
    compared = [measure("this model's", tokenizer)] if tokenizer else []
    compared += [measure(path, load(path)) for path in asked.tokenizers]
    comparison = compare(opened, asked, np.array(ids)) if asked.diff else None

    readout = Readout(opened)
    seen = look_at_text(opened, readout, ids, layers)
    if np.isnan(seen["predictions"].entropy).any():
        raise UserError(f"{asked.path}: {OUTPUTS_NAN}")
    repeated, induction = induction_scores(opened)
    return Findings(
        vocabulary=vocabulary,
        parts=vocabulary.pieces(ids),
        all_tokens=count,
        window=[config.of_layer(i).window for i in range(config.layers)],
        **seen,
        induction=induction,
        even=even_scores(len(ids)),
        even_induction=float(np.mean(1 / (repeated + 1 + int(tokenizer is not None) + np.arange(repeated)))),
        repeated=repeated,
        word=follow_word(opened, followed) if followed else None,
        tokenizers=compared,
        comparison=comparison,
    )


def load(path: str) -> Tokenizer:
    """The tokenizer of a file or folder; of a run folder its own."""
    inside = Path(path).expanduser() / "tokenizer"
    return load_tokenizer(inside if inside.is_dir() else path, "tokenizers")


def tokens_of(opened: PretrainedModel, asked: InspectArguments) -> tuple[list[int], int]:
    """(ids of the text, BOS in front, or of as much of it as is asked for; how many the whole has). Raises UserError for too many, or too few."""
    config = opened.config
    assert config.vocab is not None
    if asked.ids:
        ids = list(asked.ids)
        require(max(ids) < config.vocab, "ids", max(ids), f"below model.vocab={config.vocab}")
    else:
        ids = encoded(opened, asked.text, asked.origin)
    limit = most(config)
    if asked.tokens is None and len(ids) > limit:
        raise UserError(f"{asked.origin}: is {len(ids):,} tokens, more than {most_said(limit)}; tokens={limit} takes the first ones")
    if asked.tokens is not None and asked.tokens > limit:
        raise UserError(f"tokens={asked.tokens}: more than {most_said(limit)}")
    kept = ids[: asked.tokens]
    if len(kept) < 2:
        raise UserError(f"{asked.origin}: is 1 token; at least 2 are needed, one to foretell the other")
    return kept, len(ids)


def most(config: ModelConfig) -> int:
    """The tokens of a text, at most."""
    return min(MOST_TOKENS, config.positions) if config.position == "learned" else MOST_TOKENS


def most_said(limit: int) -> str:
    """The limit of tokens and whose it is."""
    return f"the {limit:,} that a page holds" if limit == MOST_TOKENS else f"the model's {limit:,} learned positions (model.positions)"


def encoded(opened: PretrainedModel, text: str, origin: str) -> list[int]:
    """BOS and the tokens of a text."""
    if opened.tokenizer_if_any is None:
        raise UserError(f"{origin}: {opened.path} has no tokenizer; give ids=1,2,3")
    try:
        return [opened.tokenizer.bos_id, *opened.tokenizer.encode(text)]
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error


def look_at_text(opened: PretrainedModel, readout: Readout, ids: list[int], layers: tuple[int, ...]) -> dict[str, Any]:
    """One pass over the text, as fields of `Findings`."""
    config = opened.config
    T = len(ids)
    targets = np.array([*ids[1:], 0], np.int32)
    across = min(T, max(8, int(math.sqrt(2 * MOST_MAP_BYTES / (len(layers) * config.heads)))))
    lens_length = min(T, max(8, MOST_LENS_CELLS // (config.layers + 1)))

    def look(weights_BHTS: jax.Array) -> tuple[HeadScores, jax.Array]:
        return head_scores(weights_BHTS[0], T), quantised(weights_BHTS[0, :, :across, :across])

    lens, scores, maps, routed = [], [], [], []
    last = None
    for layer in Walk(opened, look)(np.array([ids])):
        last = layer.stream[0]
        lens.append(readout.predictions(last[:lens_length], targets[:lens_length]))
        if layer.seen is not None:
            scores.append(layer.seen[0])
            if layer.number in layers:
                maps.append(layer.seen[1])
        if layer.experts is not None and layer.shares is not None:
            routed.append(by_share(layer.number, layer.experts[0], layer.shares[0]))
    assert last is not None
    return {
        "predictions": readout.predictions(last, targets),
        "lens": lens,
        "lens_length": lens_length,
        "scores": HeadScores(*(np.stack(column) for column in zip(*scores, strict=True))),
        "maps": Maps(tuple(sorted(set(layers))), across, np.stack(maps)),
        "routed": routed,
    }


def by_share(layer: int, experts_Tk: np.ndarray, shares_Tk: np.ndarray) -> Routed:
    """Each token's experts, largest weight first."""
    order = np.argsort(-shares_Tk, axis=-1, kind="stable")
    return Routed(layer, np.take_along_axis(experts_Tk, order, -1), np.take_along_axis(shares_Tk, order, -1))


def induction_scores(opened: PretrainedModel) -> tuple[int, np.ndarray]:
    """(how many random tokens were repeated, [L, H]): over a few rows BOS, random tokens, the same tokens again."""
    config, tokenizer = opened.config, opened.tokenizer_if_any
    assert config.vocab is not None
    start = int(tokenizer is not None)
    plain = Vocabulary(tokenizer).plain(config.vocab)
    repeated = min(REPEATED, len(plain), (config.positions - start) // 2 if config.position == "learned" else REPEATED)
    random = np.random.default_rng(0)
    rows = [random.choice(plain, repeated, replace=False) for _ in range(RANDOM_ROWS)]
    tokens = np.array([[*([tokenizer.bos_id] if tokenizer else []), *row, *row] for row in rows])
    # rows that fill up the batch, and padding at the end, are the layout's: they are cut off here
    look = functools.partial(induced, rows=RANDOM_ROWS, start=start, repeated=repeated)
    return repeated, np.stack([layer.seen for layer in Walk(opened, look)(tokens) if layer.seen is not None])


def induced(weights_BHTS: jax.Array, rows: int, start: int, repeated: int) -> jax.Array:
    """`induction_score` of the rows that count."""
    return induction_score(weights_BHTS[:rows], start, repeated)


@dataclass(frozen=True)
class Followed:
    """A word that is to be followed."""

    word: str
    texts: tuple[str, str]
    contexts: list[list[int]]
    """Ids of both."""
    places: list[list[int]]
    """The word's positions in both."""


def word_in_contexts(opened: PretrainedModel, asked: InspectArguments, vocabulary: Vocabulary) -> Followed | None:
    """The word that is asked for, or the example; None where that is nothing for this model. Raises UserError for what is asked for and can't be."""
    word, texts = (asked.word, asked.contexts) if asked.contexts else EXAMPLE
    limit = most(opened.config)
    try:
        contexts = [encoded(opened, text, f"contexts={text[:40]}") for text in texts]
        for text, ids in zip(texts, contexts, strict=True):
            if len(ids) > limit:
                raise UserError(f"contexts={text[:40]}…: is {len(ids):,} tokens, more than {most_said(limit)}")
        return Followed(word, texts, contexts, [find_word(vocabulary.pieces(ids), word, text) for text, ids in zip(texts, contexts, strict=True)])
    except UserError:
        if asked.contexts:
            raise
        return None  # the page says so


def follow_word(opened: PretrainedModel, followed: Followed) -> WordInContexts:
    """One pass over both contexts."""
    contexts, places = followed.contexts, followed.places
    tokens = np.zeros((2, max(map(len, contexts))), np.int32)
    for row, ids in zip(tokens, contexts, strict=True):
        row[: len(ids)] = ids
    vectors, baseline = [], []
    for layer in Walk(opened)(tokens):
        streams = [stream[: len(ids)].astype(np.float32) for stream, ids in zip(layer.stream, contexts, strict=True)]
        vectors.append([stream[at].mean(0) for stream, at in zip(streams, places, strict=True)])
        baseline.append(mean_cosine(np.concatenate(streams), np.concatenate(contexts)))
    first, second = ([ids[i] for i in at] for ids, at in zip(contexts, places, strict=True))
    path = np.array(vectors, np.float32).transpose(1, 0, 2)
    return WordInContexts(followed.word, followed.texts, (places[0], places[1]), first == second, path, np.array(baseline, np.float32))
