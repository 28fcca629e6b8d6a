"""What a run that continues from a trained model changes, measured at its start and at its end: how many
held-out prompts are answered right, and what the model forgets."""

from __future__ import annotations

import dataclasses
from typing import Any

from llm_jax.core.console import Console
from llm_jax.core.errors import UserError
from llm_jax.core.files import read_json, user_path, write_json
from llm_jax.core.format import format_loss
from llm_jax.experiment import Experiment, read_experiment
from llm_jax.objective.next_token import NextToken
from llm_jax.objective.protocol import UnknownObjective
from llm_jax.processes.group import Group
from llm_jax.run.answers import SHOWN, Answers
from llm_jax.run.prepare import NO_SERVICES, RunPlan, prepare_corpus
from llm_jax.train.evaluation import HeldOut
from llm_jax.train.state import Frozen, TrainState

FILE = "before.json"
"""What was measured at the start of a run, in its folder."""
MOST_RUNS = 20
"""Runs that continue from each other."""


class BeforeAndAfter:
    """The measurements of one run. All processes of the group make the same calls."""

    def __init__(self, plan: RunPlan, frozen: Frozen, console: Console, group: Group):
        self.plan, self.frozen, self.console, self.group = plan, frozen, console, group
        experiment = plan.experiment
        self.answers = None
        if experiment.objective.reads == "record" and experiment.sample.tokens:
            self.answers = Answers(plan)
        self.base = self.base_evaluation() if experiment.evaluate.base_batches else None

    def base_evaluation(self) -> HeldOut | None:
        """Scores weights on the corpus that the first model was trained on.

        None where it isn't known, which is logged."""
        plan, train = self.plan, self.plan.experiment.train
        try:
            base = pretraining(train.start_from)
            sizes = dataclasses.replace(
                base.train, batch_size=train.batch_size, sequence_length=train.sequence_length
            )
            base = dataclasses.replace(base, train=sizes)
            corpus = prepare_corpus(
                base, NO_SERVICES, self.group, lambda line: self.console.log(f"base: {line}")
            )
        except UserError as error:
            self.console.log(f"what the model forgets is not measured: {error}")
            return None
        return HeldOut(plan.model, NextToken(), corpus, corpus.tokenizer, train.batch_size, plan.frozen)

    def between(self) -> None:
        """Stops the measurements where a signal has come."""
        self.group.mark("sample", self.plan.experiment.train.steps)
        self.group.check()

    def measure(self, state: TrainState) -> tuple[dict[str, Any], list[str]]:
        """(the measurements by the names that they have in summary.json, the answers)."""
        parameters = state.parameters if state.average is None else state.average
        found: dict[str, Any] = {}
        texts: list[str] = []
        if self.answers:
            texts = self.answers.texts(self.plan.model.whole(parameters, self.frozen.rest), self.between)
            if of := self.answers.verified:
                found["exact_answers"] = sum(map(bool, self.answers.right(texts))) / of
        if self.base:
            self.between()
            limit = self.plan.experiment.evaluate.base_batches
            scores = self.base.scores(parameters, limit, frozen=self.frozen)
            assert scores is not None
            found["base_loss"] = float(scores["eval_loss"])
        return found, texts

    def before(self, state: TrainState) -> None:
        """Measures the state that the run starts with; the run folder keeps that for when it is resumed."""
        if not ((self.answers and self.answers.verified) or self.base):
            return
        found, _ = self.measure(state)
        if self.group.task.rank == 0:
            write_json(self.plan.run_dir / FILE, found)

    def after(self, state: TrainState) -> dict[str, Any]:
        """Measures the trained state, logs what changed, and writes the answers to samples.txt.

        Returns entries of summary.json.
        """
        found, texts = self.measure(state)
        before = read_json(self.plan.run_dir / FILE)
        if self.answers and texts:
            shown = self.answers.conversations(texts)
            if self.group.task.rank == 0:
                (self.plan.run_dir / "samples.txt").write_text("\n\n".join(shown) + "\n")
            for text in shown[:SHOWN]:
                self.console.log(text)
        lines = self.lines(found, before, texts)
        for line in lines:
            self.console.log(self.plan.label + line)
        if self.answers and self.answers.verified:
            found["exact_answers_of"] = self.answers.verified
        return {**found, **{f"{name}_before": value for name, value in before.items()}}

    def lines(self, found: dict[str, Any], before: dict[str, Any], texts: list[str]) -> list[str]:
        """The log lines about what changed."""
        lines = []
        if self.answers and (share := found.get("exact_answers")) is not None:
            was = before.get("exact_answers")
            began = "" if was is None else f"{was:.1%} before, "
            lines.append(
                f"exact answers, of {self.answers.verified} held-out prompts: {began}{share:.1%} after "
                f"({self.answers.by_task(texts)})"
            )
        if (loss := found.get("base_loss")) is not None:
            was = before.get("base_loss")
            began = "" if was is None else f"{format_loss(was)} before, "
            lines.append(
                f"held-out loss of the corpus that the base was trained on: {began}{format_loss(loss)} after"
            )
        return lines


def pretraining(path: str) -> Experiment:
    """The experiment by which the model of a folder was first trained: that of the folder, or of the run that
    this one continues from, and so on, up to one whose corpus is texts.

    Raises UserError where it isn't known.
    """
    for _ in range(MOST_RUNS):
        folder = user_path(path)
        if not path or not (folder / "config.yaml").is_file() or (folder / "weights").exists():
            break
        found = read_experiment(folder)
        if isinstance(found.objective, UnknownObjective):
            break
        if found.objective.reads == "text":
            return dataclasses.replace(found, run_dir=str(folder))
        path = found.train.start_from
    raise UserError(
        f"{path or 'a model of random weights'} is no folder of a run that was trained here on texts"
    )
