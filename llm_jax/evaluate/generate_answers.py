"""Answers that a model writes to the items of a task, compared with their references or run as programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llm_jax.core.arithmetic import round_up
from llm_jax.core.errors import UserError
from llm_jax.evaluate.code_sandbox import run_programs
from llm_jax.evaluate.item_requests import EncodedItem
from llm_jax.evaluate.tasks.references import same_text
from llm_jax.evaluate.tasks.task import Item, Task
from llm_jax.generate.engine import Engine
from llm_jax.generate.request import Request, Result
from llm_jax.pretrained.model import PretrainedModel

SLOTS = 32
"""Texts that are written at once."""


class AnswerWriter:
    """An engine that is as long as a task's longest answer needs. The same item gets the same answer in any
    batch and order."""

    def __init__(
        self,
        opened: PretrainedModel,
        task: Task,
        items: Sequence[EncodedItem],
        *,
        samples: int,
        temperature: float,
        seed: int,
        log: Callable[[str], None],
    ) -> None:
        """items: all that will be answered. samples: texts for each item of code; one is the most likely
        text, several are drawn at `temperature` with seeds that follow from `seed` and their number."""
        self.task, self.samples = task, samples if task.kind == "code" else 1
        self.temperature, self.seed = (temperature, seed) if self.samples > 1 else (0.0, 0)
        longest = max(len(one.prompt.context) + one.new_tokens for one in items if one.prompt)
        # Of equal slots and lengths an engine promises equal results, so both don't depend on what is left.
        self.engine = Engine.of(opened, SLOTS, round_up(longest, 64), prefill_rows=8, log=log)
        self.tokens = 0
        """Tokens that were read and written."""

    def answer(self, items: Sequence[EncodedItem]) -> tuple[list[dict[str, Any]], UserError | None]:
        """(what is added to the sample of each item, None): right, text, finish; of code passed, samples and
        problem too. If a user's function fails: (that of the items before, the error)."""
        requests = [self.request(one, number) for one in items for number in range(self.samples)]
        results = self.engine.generate(requests)
        self.tokens += sum(result.prompt_tokens + len(result.tokens) for result in results)
        of_items = [results[i : i + self.samples] for i in range(0, len(results), self.samples)]
        if self.task.kind == "code":
            return self.run([one.item for one in items], of_items)
        check = self.task.right or same_text
        found: list[dict[str, Any]] = []
        for one, (r,) in zip(items, of_items, strict=True):
            try:
                right = int(check(one.item, r.text))
            except UserError as error:
                return found, error
            found.append({"right": right, "text": r.text, "finish": r.finished})
        return found, None

    def request(self, encoded: EncodedItem, number: int) -> Request:
        """The request for the `number`-th text of an item."""
        assert encoded.prompt is not None
        return Request(
            ids=encoded.prompt.context,
            max_tokens=encoded.new_tokens,
            temperature=self.temperature,
            stop=self.task.stop,
            seed=(self.seed * 1_000_003 + number) % 2**32,
        )

    def run(
        self, items: Sequence[Item], of_items: Sequence[Sequence[Result]]
    ) -> tuple[list[dict[str, Any]], UserError | None]:
        """Runs the programs of some items with their tests; returns what `answer` does."""
        make = self.task.program or program_of
        programs: list[str] = []
        problem = None
        for item, results in zip(items, of_items, strict=True):
            try:
                programs += [make(item, result.text) for result in results]
            except UserError as error:
                problem = error
                break
        outcomes = run_programs(programs)
        found = []
        for number, results in enumerate(of_items[: len(programs) // self.samples]):
            own = outcomes[number * self.samples : (number + 1) * self.samples]
            passed = sum(outcome.passed for outcome in own)
            found.append(
                {
                    "right": passed / len(own) if 0 < passed < len(own) else int(passed > 0),
                    "text": results[0].text,
                    "finish": results[0].finished,
                    "passed": passed,
                    "samples": len(own),
                    "problem": own[0].problem,
                }
            )
        return found, problem


def program_of(item: Item, text: str) -> str:
    """The program of an item: its context, the model's text and the tests, one after the other."""
    return f"{item.context}{text}\n{item.tests}"
