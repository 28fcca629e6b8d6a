"""Scores a run that was trained on answers by its own objective: pairs of a better and a worse one, or
answers with labels."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from llm_jax.core.errors import UserError
from llm_jax.core.files import user_path
from llm_jax.core.log import log_to_stderr
from llm_jax.data.conversation import Kind, kind_of
from llm_jax.data.documents import WHOLE_RECORD, read_documents
from llm_jax.evaluate.corpus import changed, corpus_of
from llm_jax.objective.preference import AnswerObjective, WithReference
from llm_jax.objective.protocol import Objective
from llm_jax.objective.reward import Reward
from llm_jax.pretrained.model import open_model
from llm_jax.pretrained.source import ModelSource
from llm_jax.pretrained.weights import recorded_frozen
from llm_jax.run.frozen import check_frozen, frozen_identities, frozen_models, read_frozen
from llm_jax.run.prepare import check_layout
from llm_jax.train.evaluation import HeldOut
from llm_jax.train.state import TrainModel

PAIRS = "task_pairs"
"""The built-in pairs."""


@dataclass(frozen=True)
class OwnScores:
    """The scores of a run by its objective, as an evaluation of the run gives them."""

    path: str
    step: int
    objective: Objective
    sources: dict[str, float]
    """Sources of the corpus and their shares."""
    scores: dict[str, float]
    """By name: `eval_loss`, `eval_accuracy`, ..."""
    held_out_documents: int
    batch_size: int
    sequence_length: int
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """The scores beside what they are of."""
        about = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del about["scores"]
        return {**about, "objective": dataclasses.asdict(self.objective), **self.scores}


def has_own_scores(source: ModelSource, changes: list[tuple[str, str]]) -> bool:
    """Whether a model is a run on answers, and what is to be scored holds such answers: its own corpus, or a
    source of the same kind."""
    objective, keys = source.experiment.objective, dict(changes)
    if not isinstance(objective, AnswerObjective | Reward) or not source.steps or source.adapter is not None:
        return False
    if "data.mixture" in keys or "data.train_on" in keys:
        return False
    name = keys.get("data.source")
    kinds = ("preference", "label") if getattr(objective, "record", "") == "label" else ("preference",)
    return name is None or name == PAIRS or kind_of_file(user_path(name)) in kinds


def kind_of_file(path: Path) -> Kind | None:
    """The kind of the first record of a JSONL or Parquet file; None where there is none."""
    with contextlib.suppress(UserError, OSError, ValueError):
        if path.is_file():
            for raw in read_documents(path, text_key=WHOLE_RECORD, document_bytes=4096, separator=""):
                record = json.loads(raw)
                return kind_of(record) if isinstance(record, dict) else None
    return None


def score_own(
    source: ModelSource,
    changes: list[tuple[str, str]],
    *,
    tokens: int | None = None,
    batches: int | None = None,
    **options: Any,
) -> OwnScores:
    """Opens a run for which `has_own_scores` and scores it.

    changes: overrides (key, value) of the run's data.*, chat.* and train.*. tokens, batches: the most to
    score; None: as many as at the end of the run. options: of `open_model`. An adapter stays beside its base,
    as in training. Raises UserError, also for a reference that changed since.
    """
    objective = source.experiment.objective
    if isinstance(objective, WithReference):  # which runs beside the policy then
        objective = dataclasses.replace(objective, cache=False)
    changed(source.experiment, changes, source.path, objective)  # raises before the weights are read
    options |= {"apart": bool(source.experiment.adapter.rank), "outputs": objective.outputs}
    opened = open_model(source, **options, tokenizer=False)
    run = dataclasses.replace(opened.experiment, objective=objective)
    of_data = changed(run, changes, source.path, objective)
    check_layout(of_data, opened.place)
    train, limit = of_data.train, batches or of_data.evaluate.final_batches
    if tokens:
        limit = math.ceil(tokens / (train.batch_size * train.sequence_length))
    corpus = corpus_of(of_data)
    model = TrainModel(run.model, run.optimizer, opened.place, 0.0, run.train.trainable, run.adapter)
    identities = frozen_identities(run)
    check_frozen(recorded_frozen(source.path / "checkpoints" / str(opened.step)), identities)
    models = frozen_models(run, model, corpus.tokenizer)
    frozen = read_frozen(run, model, models, log_to_stderr, model.rest(opened.parameters))
    with jax.set_mesh(opened.place.mesh):
        held_out = HeldOut(model, objective, corpus, corpus.tokenizer, train.batch_size, models)
        found = held_out.scores(model.trainable(opened.parameters), limit, frozen=frozen)
    assert found
    return OwnScores(
        path=str(source.path),
        step=opened.step,
        objective=source.experiment.objective,
        sources=of_data.data.sources(),
        scores={name: float(value) for name, value in found.items()},
        held_out_documents=corpus.held_out_documents,
        batch_size=train.batch_size,
        sequence_length=train.sequence_length,
        dtype=run.model.compute_dtype,
    )


def scored(scores: OwnScores) -> str:
    """How many pairs or answers were scored."""
    pairs, answers = (int(scores.scores.get(f"eval_{name}", 0)) for name in ("pairs", "examples"))
    return f"{pairs:,} pairs" if pairs else f"{answers:,} answers"


def table(scores: OwnScores) -> str:
    """The scores as lines for a terminal."""
    shares = [
        f"{name}" + f" × {share:g}" * (len(scores.sources) > 1) for name, share in scores.sources.items()
    ]
    lines = {
        "model": f"{scores.path}, step {scores.step}, trained by objective.name={scores.objective.name}",
        "corpus": ", ".join(shares),
        "held out": f"{scored(scores)} scored; there are {scores.held_out_documents:,} answers",
        "sequences": f"of {scores.sequence_length}, {scores.batch_size} at a time, {scores.dtype}",
        "scores": scores.objective.line(scores.scores).removeprefix("held out: "),
    }
    return "\n".join(f"{name:<12}{value}" for name, value in lines.items())
