"""Shots: solved examples before the context of an item, and the choice of a part of a task's items."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from llm_jax.core.errors import UserError
from llm_jax.core.format import listed
from llm_jax.evaluate.tasks.task import Item, Task, check_items

MOST_TOGETHER = 4
"""Items of one source, up to which a limit takes all of them or none."""


def with_shots(task: Task, shots: int, seed: int = 0) -> Task:
    """The task with so many shots before every context.

    Shots that come with the source are taken as they are. Others are drawn from the task's examples for each
    item by itself, by the seed and the item's id: a limit or another order changes no prompt. Raises
    UserError where the task has none, or not so many.
    """
    if shots in task.prepared:
        return dataclasses.replace(task, items=task.prepared[shots])
    if shots == 0 and not task.prepared:
        return task
    if task.examples is None:
        valid = sorted(task.prepared) or [0]
        known = listed([str(n) for n in valid])
        raise UserError(f"shots={shots}: {task.name} has {known} shots. Give one of these, or leave it out")
    return dataclasses.replace(task, items=drawn(task, task.examples, shots, seed))


def drawn(
    task: Task, examples: Callable[[], Sequence[Item]], shots: int, seed: int
) -> Callable[[], Iterable[Item]]:
    """The items of a task with shots that are drawn for each. Raises UserError, when called, for too few
    examples."""

    def items() -> Iterable[Item]:
        pool = list(examples())
        pool = check_items(task, pool) if pool else pool
        for item in task.items():
            others = [one for one in pool if one.id != item.id]
            if len(others) < shots:
                raise UserError(f"shots={shots}: {task.name} has {len(others)} examples to draw them from")
            chosen = random.Random(f"{seed}:{item.id}").sample(others, shots)
            before = "".join(solved(one) + task.separator for one in chosen)
            yield dataclasses.replace(
                item,
                context=before + item.context if not item.contexts else "",
                contexts=tuple(before + context for context in item.contexts),
            )

    return items


def solved(item: Item) -> str:
    """An item with its right answer, as a shot."""
    if not item.choices:
        return f"{item.context} {item.text}"
    context, continuation = item.continuations()[item.gold or 0]
    return context + continuation


def limited(items: Sequence[Item], limit: int | None, seed: int = 0) -> list[Item]:
    """At most `limit` items, in their order: a random part, the same for every model and machine, by the seed
    and the items' ids. (The first ones of a file may be of one subject.) The few items of
    one source stay together, but for the last ones.

    >>> [item.id for item in limited([Item("a"), Item("b"), Item("c")], 2)]
    ['a', 'c']
    """
    if limit is None or limit >= len(items):
        return list(items)
    # The few items of one template stay together; of a passage with many questions some are taken.
    sizes = Counter(item.source for item in items if item.source)
    together = max(sizes.values(), default=0) <= MOST_TOGETHER
    marks = {
        item.id: hashlib.sha256(f"{seed}:{(together and item.source) or item.id}".encode()).digest()
        for item in items
    }
    chosen = {item.id for item in sorted(items, key=lambda one: marks[one.id])[:limit]}
    return [item for item in items if item.id in chosen]
