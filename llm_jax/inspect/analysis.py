"""Computes everything that a page shows, in three forward passes: over the text, over random tokens, and over
two contexts of a word."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from llm_jax.core.errors import UserError, require
from llm_jax.core.files import user_path
from llm_jax.data import Tokenizer, load_tokenizer
from llm_jax.data.token_labels import Token, Vocabulary, find_word
from llm_jax.inspect.arguments import MAX_TOKENS, InspectArguments
from llm_jax.inspect.attention import HeadScores, head_scores, induction_score, quantise, uniform_scores
from llm_jax.inspect.compare import Comparison, compare
from llm_jax.inspect.contexts import WordInContexts, mean_pair_cosine
from llm_jax.inspect.layer_by_layer import LayerByLayer
from llm_jax.inspect.logit_lens import Predictions, Readout
from llm_jax.inspect.tokenizers import TokenizerMeasurement, measure
from llm_jax.model.config import ModelConfig
from llm_jax.pretrained.model import OUTPUTS_NAN, PretrainedModel, check_text_ids

MAX_MAP_BYTES = 6 << 20
"""Bytes of all attention maps on a page, at one byte per weight."""
MAX_LENS_CELLS = 4000
"""Cells of the logit lens on a page: (layers + 1) x positions."""
REPEATED = 32
"""Random tokens that are repeated once, for the induction score."""
RANDOM_ROWS = 4
"""Rows that the induction score is a mean over."""
EXAMPLE = (
    "bank",
    ("They rowed the boat across the river to the bank", "She took the money that she had saved to the bank"),
)
"""The word and contexts that are shown by default. The word comes last, because later tokens can't change its
vector."""


@dataclass(frozen=True)
class AttentionMaps:
    """Attention weights of some layers among the first tokens of the text."""

    layers: tuple[int, ...]
    length: int
    weights: np.ndarray
    """uint8 [layers, H, length, length] in units of 1/255."""


@dataclass(frozen=True)
class RoutedTokens:
    """The experts that the tokens of the text were routed to, in one layer."""

    layer: int
    experts: np.ndarray
    """int32 [T, k], the expert with the largest weight first."""
    shares: np.ndarray
    """float32 [T, k]: the weights of these experts."""


@dataclass(frozen=True)
class Findings:
    """Everything that a page shows, as numbers."""

    vocabulary: Vocabulary
    tokens: list[Token]
    """The T tokens that are shown: BOS, then the text's."""
    all_tokens: int
    """Tokens of the whole text; more than `tokens` has if tokens=N is given."""
    window: list[int | None]
    """The attention window of every layer; None: none."""
    predictions: Predictions
    """At each position, of the next token. The entry of the last position has no target."""
    lens: list[Predictions]
    """Predictions from the residual stream before the first layer and after each, for the first `lens_length`
    positions."""
    lens_length: int
    maps: AttentionMaps
    scores: HeadScores
    """Head scores over the text, arrays [L, H]."""
    induction: np.ndarray
    """float32 [L, H]: induction scores."""
    uniform: HeadScores
    """Scores of a head with uniform attention."""
    uniform_induction: float
    """The induction score of a head with uniform attention."""
    repeated: int
    """Random tokens that were repeated for the induction score."""
    routed: list[RoutedTokens]
    word: WordInContexts | None
    tokenizers: list[TokenizerMeasurement]
    comparison: Comparison | None

    @property
    def losses(self) -> np.ndarray:
        """float32 [T - 1], nats: entry i is the loss of token i + 1, predicted from those before it."""
        return -self.predictions.log_probability[:-1]

    @property
    def bits_per_byte(self) -> float:
        """Loss in bits per byte of the predicted tokens (all but the first)."""
        return float(self.losses.sum()) / math.log(2) / max(1, sum(len(p.data) for p in self.tokens[1:]))


def analyse_model(opened: PretrainedModel, arguments: InspectArguments) -> Findings:
    """Computes everything that a page shows. Raises UserError, before any forward pass, for arguments that
    this model has no answer to."""
    config, tokenizer, vocabulary = (
        opened.config,
        opened.tokenizer_if_any,
        Vocabulary(opened.tokenizer_if_any),
    )
    ids, count = tokens_to_show(opened, arguments)
    layers = arguments.layers if arguments.layers is not None else tuple(range(config.layers))
    for layer in layers:
        if layer >= config.layers:
            raise UserError(
                f"layers={','.join(map(str, layers))}: there is no layer {layer}; the model has "
                f"{config.layers}, from 0 on"
            )
    followed = find_word_in_contexts(opened, arguments, vocabulary)
    compared = [measure("this model's", tokenizer)] if tokenizer else []
    compared += [measure(path, load_other_tokenizer(path)) for path in arguments.tokenizers]
    comparison = compare(opened, arguments, np.array(ids)) if arguments.diff else None

    readout = Readout(opened)
    seen = analyse_text(opened, readout, ids, layers)
    if np.isnan(seen["predictions"].entropy).any():
        raise UserError(f"{arguments.path}: {OUTPUTS_NAN}")
    repeated, induction = induction_scores(opened)
    return Findings(
        vocabulary=vocabulary,
        tokens=vocabulary.tokens(ids),
        all_tokens=count,
        window=[config.of_layer(i).window for i in range(config.layers)],
        **seen,
        induction=induction,
        uniform=uniform_scores(len(ids)),
        uniform_induction=float(
            np.mean(1 / (repeated + 1 + int(tokenizer is not None) + np.arange(repeated)))
        ),
        repeated=repeated,
        word=follow_word(opened, followed) if followed else None,
        tokenizers=compared,
        comparison=comparison,
    )


def load_other_tokenizer(path: str) -> Tokenizer:
    """The tokenizer in a file or folder, or of a run folder. Raises UserError."""
    inside = user_path(path) / "tokenizer"
    return load_tokenizer(inside if inside.is_dir() else path, "tokenizers")


def tokens_to_show(opened: PretrainedModel, arguments: InspectArguments) -> tuple[list[int], int]:
    """(BOS and the token ids of the text, cut after tokens=N; tokens of the whole text). Raises UserError for
    too many or too few."""
    config = opened.config
    assert config.vocab is not None
    if arguments.ids:
        ids = list(arguments.ids)
        require(max(ids) < config.vocab, "ids", max(ids), f"below model.vocab={config.vocab}")
    else:
        ids = encode_with_bos(opened, *arguments.source)
    limit = max_tokens(config)
    if arguments.tokens is None and len(ids) > limit:
        raise UserError(
            f"{arguments.source[1]}: is {len(ids):,} tokens, more than {limit_text(limit)}; "
            f"tokens={limit} takes the first ones"
        )
    if arguments.tokens is not None and arguments.tokens > limit:
        raise UserError(f"tokens={arguments.tokens}: more than {limit_text(limit)}")
    kept = ids[: arguments.tokens]
    if len(kept) < 2:
        raise UserError(
            f"{arguments.source[1]}: is 1 token; at least 2 are needed, because each is predicted from "
            "those before it"
        )
    return kept, len(ids)


def max_tokens(config: ModelConfig) -> int:
    """Maximum tokens of a text: those that a page holds, or the model's learned positions if these are
    fewer."""
    return min(MAX_TOKENS, config.positions) if config.position == "learned" else MAX_TOKENS


def limit_text(limit: int) -> str:
    """The maximum of tokens and where it comes from, for errors."""
    return (
        f"the {limit:,} that a page holds"
        if limit == MAX_TOKENS
        else f"the model's {limit:,} learned positions (model.positions)"
    )


def encode_with_bos(opened: PretrainedModel, text: str, origin: str) -> list[int]:
    """BOS and the token ids of a text. Raises UserError for a model without a tokenizer."""
    if opened.tokenizer_if_any is None:
        raise UserError(f"{origin}: {opened.path} has no tokenizer; give ids=1,2,3")
    try:
        ids = [opened.tokenizer.bos_id, *opened.tokenizer.encode(text)]
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    assert opened.config.vocab is not None
    check_text_ids(ids, opened.config.vocab, origin, opened.path)
    return ids


def analyse_text(
    opened: PretrainedModel, readout: Readout, ids: list[int], layers: tuple[int, ...]
) -> dict[str, Any]:
    """One forward pass over the text; returns fields of `Findings`."""
    config = opened.config
    T = len(ids)
    targets = np.array([*ids[1:], 0], np.int32)
    across = min(T, max(8, int(math.sqrt(2 * MAX_MAP_BYTES / (len(layers) * config.heads)))))
    lens_length = min(T, max(8, MAX_LENS_CELLS // (config.layers + 1)))

    def reduce_attention(weights_BHTS: jax.Array) -> tuple[HeadScores, jax.Array]:
        return head_scores(weights_BHTS[0], T), quantise(weights_BHTS[0, :, :across, :across])

    lens, scores, maps, routed = [], [], [], []
    last = None
    for layer in LayerByLayer(opened, reduce_attention)(np.array([ids])):
        last = layer.stream[0]
        lens.append(readout.predictions(last[:lens_length], targets[:lens_length]))
        if layer.attention is not None:
            scores.append(layer.attention[0])
            if layer.number in layers:
                maps.append(layer.attention[1])
        if layer.experts is not None and layer.shares is not None:
            routed.append(sort_by_share(layer.number, layer.experts[0], layer.shares[0]))
    assert last is not None
    return {
        "predictions": readout.predictions(last, targets),
        "lens": lens,
        "lens_length": lens_length,
        "scores": HeadScores(*(np.stack(column) for column in zip(*scores, strict=True))),
        "maps": AttentionMaps(tuple(sorted(set(layers))), across, np.stack(maps)),
        "routed": routed,
    }


def sort_by_share(layer: int, experts_Tk: np.ndarray, shares_Tk: np.ndarray) -> RoutedTokens:
    """Routing with each token's experts sorted by weight, largest first. experts_Tk, shares_Tk: as the router
    chose them."""
    order = np.argsort(-shares_Tk, axis=-1, kind="stable")
    return RoutedTokens(
        layer, np.take_along_axis(experts_Tk, order, -1), np.take_along_axis(shares_Tk, order, -1)
    )


def induction_scores(opened: PretrainedModel) -> tuple[int, np.ndarray]:
    """(how many random tokens are repeated, scores [L, H]), over `RANDOM_ROWS` rows of BOS, random tokens and
    those tokens again."""
    config, tokenizer = opened.config, opened.tokenizer_if_any
    assert config.vocab is not None
    start = int(tokenizer is not None)
    plain = Vocabulary(tokenizer).plain(config.vocab)
    repeated = min(
        REPEATED, len(plain), (config.positions - start) // 2 if config.position == "learned" else REPEATED
    )
    random = np.random.default_rng(0)
    rows = [random.choice(plain, repeated, replace=False) for _ in range(RANDOM_ROWS)]
    tokens = np.array([[*([tokenizer.bos_id] if tokenizer else []), *row, *row] for row in rows])
    # the layout pads rows and positions; the score leaves padding out
    reduce_attention = functools.partial(induction_of_rows, rows=RANDOM_ROWS, start=start, repeated=repeated)
    return repeated, np.stack(
        [
            layer.attention
            for layer in LayerByLayer(opened, reduce_attention)(tokens)
            if layer.attention is not None
        ]
    )


def induction_of_rows(weights_BHTS: jax.Array, rows: int, start: int, repeated: int) -> jax.Array:
    """`induction_score` of the first `rows` rows; the others are padding."""
    return induction_score(weights_BHTS[:rows], start, repeated)


@dataclass(frozen=True)
class WordOccurrences:
    """A word and where its tokens are in two texts."""

    word: str
    texts: tuple[str, str]
    contexts: list[list[int]]
    """Token ids of each text, BOS first."""
    places: list[list[int]]
    """Positions of the word's tokens in each text."""


def find_word_in_contexts(
    opened: PretrainedModel, arguments: InspectArguments, vocabulary: Vocabulary
) -> WordOccurrences | None:
    """The given word in its contexts, or the example. Raises UserError if a given word is not in both; None
    if the example is not."""
    word, texts = (arguments.word, arguments.contexts) if arguments.contexts else EXAMPLE
    limit = max_tokens(opened.config)
    try:
        contexts = [encode_with_bos(opened, text, f"contexts={text[:40]}") for text in texts]
        for text, ids in zip(texts, contexts, strict=True):
            if len(ids) > limit:
                raise UserError(
                    f"contexts={text[:40]}…: is {len(ids):,} tokens, more than {limit_text(limit)}"
                )
        return WordOccurrences(
            word,
            texts,
            contexts,
            [
                find_word(vocabulary.tokens(ids), word, text)
                for text, ids in zip(texts, contexts, strict=True)
            ],
        )
    except UserError:
        if arguments.contexts:
            raise
        return None  # the page has a note instead


def follow_word(opened: PretrainedModel, followed: WordOccurrences) -> WordInContexts:
    """One forward pass over both contexts: the word's vectors after every layer."""
    contexts, places = followed.contexts, followed.places
    tokens = np.zeros((2, max(map(len, contexts))), np.int32)
    for row, ids in zip(tokens, contexts, strict=True):
        row[: len(ids)] = ids
    vectors, baseline = [], []
    for layer in LayerByLayer(opened)(tokens):
        streams = [
            stream[: len(ids)].astype(np.float32) for stream, ids in zip(layer.stream, contexts, strict=True)
        ]
        vectors.append([stream[at].mean(0) for stream, at in zip(streams, places, strict=True)])
        baseline.append(mean_pair_cosine(np.concatenate(streams), np.concatenate(contexts)))
    first, second = ([ids[i] for i in at] for ids, at in zip(contexts, places, strict=True))
    path = np.array(vectors, np.float32).transpose(1, 0, 2)
    return WordInContexts(
        followed.word,
        followed.texts,
        (places[0], places[1]),
        first == second,
        path,
        np.array(baseline, np.float32),
    )
