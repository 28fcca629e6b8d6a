"""Scores a model on the held-out documents of a corpus."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import jax

from llm_jax.core.errors import UserError
from llm_jax.evaluate.corpus import corpus_of, with_changes
from llm_jax.layout.layout import Layout
from llm_jax.model import transformer
from llm_jax.pretrained.model import check_outputs, open_model
from llm_jax.pretrained.source import open_source
from llm_jax.run.prepare import check_layout
from llm_jax.train.evaluation import HeldOut


@dataclass(frozen=True)
class Scores:
    """The scores of a model, and what it was scored on."""

    path: str
    step: int
    sources: dict[str, float]
    """Sources of the corpus and their shares."""
    eval_loss: float
    """Mean loss in nats per token."""
    perplexity: float
    """exp of `eval_loss`."""
    eval_bits_per_byte: float
    """Bits per byte of the predicted tokens; with a lossless tokenizer these are the text's bytes."""
    eval_tokens: int
    held_out_tokens: int
    """Held-out tokens of the corpus, of which `eval_tokens` were scored."""
    held_out_documents: int
    batch_size: int
    sequence_length: int
    tokenizer_lossless: bool
    layout: str
    mesh: dict[str, int]
    dtype: str


def score(
    path: Path,
    changes: list[tuple[str, str]],
    *,
    layout: Layout | None = None,
    mesh: dict[str, int] | None = None,
    dtype: str | None = None,
    step: int | None = None,
    adapter: Path | str | None = None,
    apart: bool = False,
    tokens: int | None = None,
    batches: int | None = None,
) -> Scores:
    """Opens a model and scores it. changes: overrides (key, value) of the run's data.* and train.*.

    tokens, batches: the maximum to score; None: as many as at the end of the run. layout, mesh, dtype, step,
    adapter, apart: as for `open_model`. Raises UserError.
    """
    source = open_source(path, adapter=adapter)
    check_outputs(source.experiment.model.outputs, str(path), "logits")
    with_changes(
        source.experiment, changes, path
    )  # raises for mistakes in `changes` before the weights are read
    # The corpus reads the tokenizer.
    opened = open_model(
        source, layout=layout, mesh=mesh, dtype=dtype, step=step, apart=apart, tokenizer=False
    )
    experiment = with_changes(opened.experiment, changes, path)
    check_layout(experiment, opened.place)
    train, limit = experiment.train, batches or experiment.evaluate.final_batches
    transformer.check(experiment.model, opened.place, train.sequence_length)
    corpus = corpus_of(experiment)
    if corpus.tokenizer.vocab_size > (opened.config.vocab or 0):
        raise UserError(
            f"{path}: its tokenizer has {corpus.tokenizer.vocab_size:,} tokens, more than the model's "
            f"{opened.config.vocab:,}. "
            "Put the model's own tokenizer there"
        )
    if tokens:
        limit = math.ceil(tokens / (train.batch_size * train.sequence_length))
    with jax.set_mesh(opened.place.mesh):
        found = HeldOut(
            opened.program, experiment.objective, corpus, corpus.tokenizer, train.batch_size
        ).scores(opened.parameters, limit)
    assert found
    loss = float(found["eval_loss"])
    if not math.isfinite(loss):
        raise UserError(
            f"{path}: its held-out loss is {loss} at step {opened.step}: weights, or what they compute in "
            f"{experiment.model.compute_dtype}, are no finite numbers. Take an earlier step= or dtype=float32"
        )
    return Scores(
        path=str(path),
        step=opened.step,
        sources=experiment.data.sources(),
        eval_loss=loss,
        perplexity=math.exp(loss) if loss < 709 else math.inf,
        eval_bits_per_byte=float(found["eval_bits_per_byte"]),
        eval_tokens=int(found["eval_tokens"]),
        held_out_tokens=corpus.held_out_tokens,
        held_out_documents=corpus.held_out_documents,
        batch_size=train.batch_size,
        sequence_length=train.sequence_length,
        tokenizer_lossless=corpus.tokenizer.lossless,
        layout=experiment.layout.name,
        mesh=dict(opened.place.mesh.shape),
        dtype=experiment.model.compute_dtype,
    )


def table(scores: Scores) -> str:
    """The scores as lines for a terminal."""
    note = "" if scores.tokenizer_lossless else "  (of the tokens' bytes: this tokenizer is not lossless)"
    lines = {
        "model": f"{scores.path}, step {scores.step}",
        "corpus": ", ".join(
            f"{name}" + (f" × {share:g}" if len(scores.sources) > 1 else "")
            for name, share in scores.sources.items()
        ),
        "held out": f"{scores.eval_tokens:,} tokens scored; there are {scores.held_out_tokens:,} in "
        f"{scores.held_out_documents:,} documents",
        "sequences": f"of {scores.sequence_length}, {scores.batch_size} at a time, {scores.dtype}",
        "loss": f"{scores.eval_loss:.4f} nats per token",
        "perplexity": f"{scores.perplexity:.2f}",
        "bits/byte": f"{scores.eval_bits_per_byte:.4f}{note}",
    }
    return "\n".join(f"{name:<12}{value}" for name, value in lines.items())
