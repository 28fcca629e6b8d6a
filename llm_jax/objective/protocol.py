"""The protocol of objectives: the arrays of a batch, the frozen models beside the policy, the loss, and the
scores.

An objective is a frozen dataclass: its fields are the keys `objective.KEY=VALUE` of an experiment, its `name`
is what `objective=NAME` chooses it by. One in this package is the file objective/NAME.py; any other is
defined by whoever runs it, for instance in the experiment file (docs/extending.md). The train loop,
checkpoints, grids and the compiler see nothing of an objective but this protocol.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import numpy as np

from llm_jax.core.errors import UserError, nearest
from llm_jax.core.format import format_loss
from llm_jax.data.encoder import Encoder, EncoderSettings
from llm_jax.data.rows import RowKind
from llm_jax.model.accounting import train_flops_per_token
from llm_jax.model.config import ModelConfig
from llm_jax.model.router import Routing
from llm_jax.model.transformer import Transformer

Batch = Mapping[str, jax.Array]
"""The arrays of one microbatch, by name, as `Objective.arrays` describes them."""
HostBatch = dict[str, np.ndarray]
"""The arrays of a whole batch on the host, by name."""


class ArraySpec(NamedTuple):
    """One array of a batch: its dims, "batch" first, and its dtype."""

    dims: tuple[str | int, ...]
    """A name ("batch", "sequence") is a dim that the layout may split; a number is the size of one that it
    never does: pairs of sequences are ("batch", 2, "sequence"), labels ("batch",).
    """
    dtype: str


TOKENS = ArraySpec(("batch", "sequence"), "int32")
WEIGHTS = ArraySpec(("batch", "sequence"), "float32")


class Metric(NamedTuple):
    """A mean, as its sum and the weight that it is divided by; both are summed over microbatches first.
    float32 [].
    """

    total: jax.Array
    weight: jax.Array | None = None
    """None: the weight of the loss."""


class Loss(NamedTuple):
    """The loss of one microbatch, as a sum: a step divides by the sum of the weights of all microbatches."""

    total: jax.Array
    """Weighted sum of the losses, float32 []."""
    weight: jax.Array
    """Sum of the weights, float32 [].

    It must come from the batch's own weights, which the host made before any cut: then the mean is the same
    for every number of microbatches, processes and devices.
    """
    metrics: Mapping[str, Metric] = {}
    routing: Routing | None = None
    """The routing statistics of a mixture of experts (`Hidden.routing`); the step adds the router's own
    losses.
    """


class Score(NamedTuple):
    """The evaluation score by which a run's best checkpoint is kept."""

    name: str = "eval_loss"
    lower_is_better: bool = True


class Examples(Protocol):
    """Where batches come from: the arrays of `Objective.arrays`, as a pure function of the step.

    `data.Corpus` is one.
    """

    def batch(self, step: int, rows: range | None = None) -> HostBatch:
        """The global batch at `step` (from 0), or only its `rows`: each array [rows, ...]."""

    def held_out_batches(self, batch_size: int, limit: int | None = None) -> Iterator[HostBatch]:
        """Batches to evaluate on, in a fixed order; at most `limit`.

        The last one may be filled up with rows of weight 0.
        """


@dataclass(frozen=True)
class Objective:
    """The base of all objectives.

    A subclass sets `name`, and overrides what differs from next-token prediction.
    """

    name: str = ""

    def __init_subclass__(cls) -> None:
        if name := cls.__dict__.get("name"):
            known = OBJECTIVES.get(name)
            if (
                known is not None
                and cls.__module__ != known.__module__
                and source_file(cls) != source_file(known)
            ):
                raise UserError(
                    f"objective.name={name}: {source_file(known)} has an objective of this name. "
                    "Choose another name"
                )
            OBJECTIVES[name] = cls

    def check(self) -> None:
        """Raises UserError for a value out of range."""

    def arrays(self) -> Mapping[str, ArraySpec]:
        """The arrays of a batch, by name."""
        return {
            "tokens": TOKENS,
            "targets": TOKENS,
            "weights": WEIGHTS,
            "segments": TOKENS,
            "positions": TOKENS,
        }

    def frozen(self) -> Mapping[str, str]:
        """Models that the loss needs beside the policy and that don't change: role → a run folder or Hugging
        Face folder; "" for the weights that the run itself starts with (a reference).
        """
        return {}

    def files(self) -> Mapping[str, str]:
        """Files that the loss reads beside the data: the key of the objective → path. Checkpoints record
        their sha256.
        """
        return {}

    def precomputed(self) -> Mapping[str, str]:
        """Models that are read once, before the first step: role → folder, as in `frozen`.

        The log-probabilities that each gives to the data are kept beside the tokens, and are arrays ROLE_logp
        [B, T] of every batch: of its targets, in nats, float32. A step neither holds nor runs the model.
        """
        return {}

    rows: ClassVar[RowKind] = "cut"
    """How documents fill rows: packed end to end and cut at the ends of rows (`cut`); whole ones only, the
    rest padding (`whole`); whole pairs of answers (`pairs`), or answers with labels (`labelled`).
    """

    outputs: ClassVar[Literal["logits", "reward"]] = "logits"
    """What the head of the policy makes (`ModelConfig.outputs`)."""

    reads: ClassVar[Literal["text", "record"]] = "text"
    """What the encoder gets of a record of JSONL or Parquet: its text (`data.text_key`), or all of it in
    JSON.
    """

    def encoder(self, settings: EncoderSettings) -> Encoder | None:
        """How a document becomes tokens and their weights; None: BOS + text + EOS, all trained."""
        return None

    def examples(self, corpus: Any, settings: Any) -> Examples:
        """The batches, from the run's `data.Corpus`. settings: the run's `TrainConfig`."""
        return corpus

    def source(self, loader: Any) -> Any:
        """The source of batches (`train.loader.BatchSource`): the loader of `examples`, or one that reads the
        state of each step.

        One that makes its batches itself asks `loader.batch_of(step)` for the number of a step's batch: a
        roll-back skips some.
        """
        return loader

    def totals(
        self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch
    ) -> Mapping[str, jax.Array]:
        """Sums over one microbatch of what each loss needs of the whole batch, by name, float32 [].

        They are summed over the microbatches before the first loss, are constants to it, and are entries of
        its batch: so a second denominator, or a mean that a loss is measured from, does not depend on how
        the batch is cut.
        """
        return {}

    def loss(self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch) -> Loss:
        """The loss of one microbatch.

        It is traced, and differentiated with respect to the policy's trainable parameters.
        """
        raise NotImplementedError

    def compute_loss(self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch) -> Loss:
        """What a step calls: `loss`. An objective whose key `loss` chooses a formula overrides this
        instead."""
        return self.loss(policy, frozen, batch)

    def evaluate(
        self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch, token_bytes: jax.Array
    ) -> Mapping[str, jax.Array]:
        """Sums over one held-out batch, each float32 []. token_bytes: float32 [V], the UTF-8 bytes that each
        token stands for.
        """
        raise NotImplementedError

    def scores(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """The scores of an evaluation, from the sums over all its batches (float64, on the host).

        They are written to metrics.jsonl; their names begin with "eval_".
        """
        raise NotImplementedError

    shown: ClassVar[tuple[str, ...]] = ()
    """Metrics that the progress line shows beside the loss."""

    def progress(self, metrics: Mapping[str, float]) -> list[str]:
        """What the progress line has beside the loss, from the metrics of a step."""
        return [f"{name} {metrics[name]:.4g}" for name in self.shown if name in metrics]

    unit: ClassVar[str] = "nats per token"
    """The unit of the loss."""

    curves: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The panels of the run folder's curves.png: what is on the axis → metrics, which an evaluation has with
    "eval_" before their names; no picture where there is no panel.
    """

    def line(self, scores: Mapping[str, float]) -> str:
        """The scores of an evaluation as one line of the log."""
        return ", ".join(f"{name} {format_loss(value)}" for name, value in scores.items())

    @property
    def score(self) -> Score:
        """Which of the scores decides which checkpoint is the best."""
        return Score()

    def tokens_per_step(self, batch_size: int, sequence_length: int) -> int:
        """Tokens that one step reads, for tokens/s and the token counts of a run."""
        return batch_size * sequence_length

    def flops_per_token(
        self, model: ModelConfig, sequence_length: int, frozen: Mapping[str, ModelConfig]
    ) -> float:
        """Training FLOPs a token, for MFU: 6 a matrix-product weight for the policy, 2 (a forward pass) for
        each frozen model.
        """
        return train_flops_per_token(model, sequence_length) + sum(
            train_flops_per_token(config, sequence_length) / 3 for config in frozen.values()
        )


@dataclass(frozen=True)
class UnknownObjective(Objective):
    """The objective of a run folder that was defined in a file that isn't imported here: the model can be
    used, but not trained.
    """

    def check(self) -> None:
        """Raises UserError: there is nothing to train with."""
        objective_class(self.name)


def source_file(kind: type) -> str:
    """The file that defines a class: it may be imported twice, as an experiment and as a module."""
    module = sys.modules.get(kind.__module__)
    return str(getattr(module, "__file__", kind.__module__))


OBJECTIVES: dict[str, type[Objective]] = {}
"""Every objective that has been defined in this process, by name."""


def objective_names() -> list[str]:
    """The names of all objectives: those of this package, and those that were defined elsewhere in this
    process.
    """
    import llm_jax.objective as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return sorted(OBJECTIVES)


def objective_class(name: str) -> type[Objective]:
    """The objective of this name. Raises UserError, with the nearest name, where there is none."""
    if name not in OBJECTIVES and name not in objective_names():
        raise UserError(
            f"objective.name={name}: no such objective; {nearest(name, OBJECTIVES)} (an experiment file "
            "can define one, see docs/extending.md)"
        )
    return OBJECTIVES[name]
