"""The loss of weights on the documents of a corpus that are held out, in training and after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from llm_jax.data import Corpus
from llm_jax.processes.group import Group
from llm_jax.train.compile import program_options
from llm_jax.train.config import EvaluateConfig, TrainConfig
from llm_jax.train.loader import on_devices
from llm_jax.train.state import TrainModel, TrainState
from llm_jax.train.step import Metrics, make_evaluation


class HeldOut:
    """Scores weights on a corpus' held-out documents."""

    def __init__(self, program: TrainModel, corpus: Corpus, batch_size: int, evaluate: Callable[..., Metrics] | None = None):
        """evaluate: in place of `make_evaluation`'s, where the weights are of several runs."""
        self.program, self.corpus, self.batch_size = program, corpus, batch_size
        self.evaluate = jax.jit(evaluate or make_evaluation(program), compiler_options=program_options(program) or None)
        self.token_bytes = pad_to(corpus.tokenizer.token_bytes.astype(np.float32), program.config.vocab or 0)

    def scores(self, parameters: Any, limit: int | None, stopped: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
        """eval_loss in nats per token, eval_bits_per_byte, and over how many tokens, float64 [] or [R]; of at most `limit` batches.

        `stopped` is asked before each batch; None where it said so.
        """
        sums: dict[str, Any] = {"cross_entropy": 0.0, "weight": 0.0, "bytes": 0.0}
        for batch in self.corpus.held_out_batches(self.batch_size, limit):
            if stopped():
                return None
            scores = jax.device_get(self.evaluate(parameters, on_devices(batch, self.program.place), self.token_bytes))
            sums = {name: total + np.asarray(scores[name], np.float64) for name, total in sums.items()}
        return {
            "eval_loss": sums["cross_entropy"] / sums["weight"],
            "eval_bits_per_byte": sums["cross_entropy"] / np.log(2) / sums["bytes"],
            "eval_tokens": sums["weight"],
        }


class Evaluator:
    """The evaluations of a run, or of several."""

    def __init__(
        self,
        program: TrainModel,
        corpus: Corpus,
        train: TrainConfig,
        config: EvaluateConfig,
        group: Group,
        evaluate: Callable[..., Metrics] | None = None,
    ):
        """evaluate: as for `HeldOut`."""
        self.train, self.config, self.group = train, config, group
        self.held_out = HeldOut(program, corpus, train.batch_size, evaluate)

    def __call__(self, state: TrainState) -> dict[str, Any] | None:
        """The scores of a state, or of its average where it has one; None if a signal ended it."""
        done = int(np.max(state.step))
        limit = self.config.final_batches if done == self.train.steps else self.config.batches

        def stopped() -> bool:
            self.group.mark("evaluate", done)
            return self.group.poll() is not None

        return self.held_out.scores(state.parameters if state.average is None else state.average, limit, stopped)


def pad_to(values: np.ndarray, size: int) -> np.ndarray:
    """The values with zeros behind them."""
    return np.pad(values, (0, max(0, size - len(values))))
