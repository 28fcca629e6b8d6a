"""The scores of weights on held-out examples, in training and after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from llm_jax.data import Tokenizer
from llm_jax.objective.protocol import Examples, Objective
from llm_jax.processes.group import Group
from llm_jax.train.config import EvaluateConfig, TrainConfig
from llm_jax.train.loader import on_devices
from llm_jax.train.state import Frozen, TrainModel, TrainState
from llm_jax.train.step import NO_MODELS, Metrics, Models, make_evaluation


class HeldOut:
    """Scores weights on held-out examples, as an objective does."""

    def __init__(
        self,
        model: TrainModel,
        objective: Objective,
        examples: Examples,
        tokenizer: Tokenizer,
        batch_size: int,
        frozen_models: Models = NO_MODELS,
        evaluate: Callable[..., Metrics] | None = None,
    ):
        """evaluate: in place of `make_evaluation`'s, where the weights are of several runs."""
        self.model, self.objective, self.examples, self.batch_size = model, objective, examples, batch_size
        evaluate = evaluate or make_evaluation(model, objective, frozen_models)
        self.evaluate = model.jit(evaluate)
        self.token_bytes = pad_to(tokenizer.token_bytes.astype(np.float32), model.config.vocab or 0)

    def scores(
        self,
        parameters: Any,
        limit: int | None,
        stopped: Callable[[], bool] = lambda: False,
        frozen: Frozen | None = None,
    ) -> dict[str, Any] | None:
        """The objective's scores, float64 [] or [R], of at most `limit` batches.

        `stopped` is called before each batch; None where it returned True.
        """
        sums: dict[str, Any] = {}
        for batch in self.examples.held_out_batches(self.batch_size, limit):
            if stopped():
                return None
            arrays = on_devices(batch, self.objective, self.model.place)
            found = jax.device_get(self.evaluate(parameters, arrays, self.token_bytes, frozen or Frozen()))
            sums = {
                name: sums.get(name, 0.0) + np.asarray(value, np.float64) for name, value in found.items()
            }
        return self.objective.scores(sums)


class Evaluator:
    """The evaluations of a run, or of several."""

    def __init__(
        self,
        held_out: HeldOut,
        train: TrainConfig,
        config: EvaluateConfig,
        group: Group,
        frozen: Frozen | None = None,
        tasks: Callable[[Any, Callable[[], bool]], dict[str, float] | None] | None = None,
    ):
        """tasks: (parameters, stopped) → more scores, every `config.tasks_every` steps and at the end."""
        self.held_out, self.train, self.config, self.group, self.frozen = (
            held_out,
            train,
            config,
            group,
            frozen,
        )
        self.tasks = tasks

    def __call__(self, state: TrainState) -> dict[str, Any] | None:
        """The scores of a state, or of its average where it has one; None if a signal ended it."""
        done = int(np.max(state.step))
        limit = self.config.final_batches if done == self.train.steps else self.config.batches

        def stopped() -> bool:
            self.group.mark("evaluate", done)
            return self.group.poll() is not None

        parameters = state.parameters if state.average is None else state.average
        scores = self.held_out.scores(parameters, limit, stopped, self.frozen)
        every = self.config.tasks_every
        if scores is None or not self.tasks or not (done == self.train.steps or (every and not done % every)):
            return scores
        more = self.tasks(parameters, stopped)
        return None if more is None else {**scores, **more}


def pad_to(values: np.ndarray, size: int) -> np.ndarray:
    """The values with zeros behind them."""
    return np.pad(values, (0, max(0, size - len(values))))
