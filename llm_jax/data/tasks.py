"""Generated tasks with one right answer each: so small that a model of a million parameters learns them in a
minute, and the same on every machine.

    prompt      "Reverse: k e b d"
    completion  "d b e k"

Everything is a function of a seed. A wrong answer to a task, for preference pairs, is one that a beginner
might give, and that the verifier refuses.
"""

from __future__ import annotations

import ast
import hashlib
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"


class GeneratedTask(NamedTuple):
    """A task and its answer."""

    kind: str
    prompt: str
    answer: str


class Draws:
    """Random numbers that depend on the seed alone: not on the machine, nor on Python's version."""

    def __init__(self, seed: str):
        self.seed, self.count = seed, 0

    def below(self, bound: int) -> int:
        """A whole number from 0 to bound - 1."""
        self.count += 1
        digest = hashlib.sha256(f"{self.seed} {self.count}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % bound

    def one_of(self, items: Any) -> Any:
        """One of some items."""
        return items[self.below(len(items))]

    def several(self, items: str, least: int, most: int) -> list[str]:
        """From `least` to `most` of some items, each of which may come again."""
        return [self.one_of(items) for _ in range(least + self.below(most - least + 1))]


def reverse(draws: Draws) -> GeneratedTask:
    """Letters in the opposite order."""
    letters = draws.several(LETTERS, 2, 4)
    return GeneratedTask("reverse", f"Reverse: {' '.join(letters)}", " ".join(letters[::-1]))


def sort(draws: Draws) -> GeneratedTask:
    """Digits from the smallest to the largest."""
    digits = draws.several(DIGITS, 2, 4)
    return GeneratedTask("sort", f"Sort: {' '.join(digits)}", " ".join(sorted(digits)))


def count(draws: Draws) -> GeneratedTask:
    """How often a digit comes among others."""
    digits = draws.several(DIGITS[:4], 2, 5)
    one = draws.one_of(DIGITS[:4])
    return GeneratedTask("count", f"Count {one}: {' '.join(digits)}", str(digits.count(one)))


def python(draws: Draws) -> GeneratedTask:
    """The value of an expression in Python."""
    digits = draws.several(DIGITS, 2, 4)
    row, one = f"[{', '.join(digits)}]", draws.one_of(DIGITS)
    forms = (
        f"{row}[{draws.below(len(digits))}]",
        f"max({row})",
        f"min({row})",
        f"len({row})",
        f"{one} in {row}",
        f"{one} > {digits[0]}",
        f"{one} + {digits[0]}",
    )
    expression = draws.one_of(forms)
    return GeneratedTask("python", f"Python: {expression}", repr(value_of(expression)))


KINDS: tuple[Callable[[Draws], GeneratedTask], ...] = (reverse, sort, count, python)


def tasks(seed: int, number: int, part: str) -> Iterator[GeneratedTask]:
    """Tasks, each once, in an order without meaning.

    part: one of two halves of all tasks, "single" or "pairs", which have no prompt in common: so what is
    held out of one is never trained in the other.
    """
    seen: set[str] = set()
    attempt = 0
    while len(seen) < number:
        draws = Draws(f"{seed} {attempt}")
        task = draws.one_of(KINDS)(draws)
        attempt += 1
        if task.prompt not in seen and part_of(task.prompt) == part:
            seen.add(task.prompt)
            yield task


def part_of(prompt: str) -> str:
    """Which half of all tasks a prompt belongs to, by a hash of it."""
    return ("single", "pairs")[hashlib.sha256(f"part {prompt}".encode()).digest()[0] % 2]


def wrong_answer(task: GeneratedTask, draws: Draws) -> str:
    """An answer that a beginner might give, and that is wrong."""
    words = task.answer.split()
    candidates = {
        *(" ".join([*words[:i], *words[i + 1 :]]) for i in range(len(words))),  # one is left out
        *(" ".join([*words[:i], *words[i : i + 2][::-1], *words[i + 2 :]]) for i in range(len(words) - 1)),
        " ".join(words[::-1]),
        *(
            str(int(word) + step)
            for word in words[:1]
            if word.isdigit() and len(words) == 1
            for step in (1, 2)
        ),
        {"True": "False", "False": "True"}.get(task.answer, ""),
    }
    return draws.one_of(sorted(c for c in candidates if c and not is_right(task.answer, c)))


def is_right(expected: str, answer: str) -> bool:
    """The verifier: whether an answer is the expected one, but for the white space around it.

    >>> is_right("3 1", " 3 1\\n"), is_right("3 1", "3 1 2")
    (True, False)
    """
    return answer.strip() == expected.strip()


OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.In: lambda item, items: item in items,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"max": max, "min": min, "len": len}


def value_of(expression: str) -> Any:
    """The value of an expression of numbers, texts and lists with `OPERATORS` and `FUNCTIONS`.

    It is not run as Python. Raises ValueError for anything else.

    >>> value_of("max(3, 4) - 1"), value_of("[5, 6][1]"), value_of("2 > 3")
    (3, 6, False)
    """
    return value_of_node(ast.parse(expression, mode="eval").body)


def value_of_node(node: ast.AST) -> Any:
    """The value of a node of an expression."""
    match node:
        case ast.Constant(value=int() | str() as value):
            return value
        case ast.List(elts=items):
            return [value_of_node(item) for item in items]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](value_of_node(left), value_of_node(right))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
            return OPERATORS[type(op)](value_of_node(left), value_of_node(right))
        case ast.Subscript(value=value, slice=index):
            return value_of_node(value)[value_of_node(index)]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*map(value_of_node, args))
    raise ValueError(f"{ast.unparse(node)}: is none of numbers, texts, lists, {', '.join(FUNCTIONS)}")
