"""What Python prints: sessions of a few lines, each with the output of another one as the wrong answer.

The right answer is what Python itself gives when the items are made. The two sessions of a crossing differ in
little (an index, an operator, the order of two numbers), so their outputs look alike.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from typing import Any

from llm_jax.data.tasks import Draws
from llm_jax.evaluate.suites.crossed import Crossed, Phenomenon, crossed
from llm_jax.evaluate.suites.words import phrases

Session = tuple[str, ...]
"""Lines of Python, the last one an expression. A line that begins with a space continues the one before."""
BUILTINS = {name: getattr(builtins, name) for name in phrases(
    "abs, bool, dict, divmod, enumerate, float, int, isinstance, len, list, max, min, "
    "range, reversed, round, set, sorted, str, sum, tuple, type, zip"
)}  # fmt: skip
WORDS = phrases("""
apple, river, stone, garden, window, yellow, winter, carpet, pencil, silver, orange, basket, candle, forest,
market, mirror, needle, pocket, rocket, summer, ticket, tunnel, velvet, wallet""")


def output_of(session: Session) -> str:
    """What Python prints for the last line of a session, with few builtins and no imports.

    >>> output_of(("x = [3, 1]", "for n in [2, 5]:", "    x.append(n)", "sorted(x)"))
    '[1, 2, 3, 5]'
    """
    names: dict[str, Any] = {"__builtins__": BUILTINS}
    exec("\n".join(session[:-1]), names)
    return repr(eval(session[-1], names))


def prompt(session: Session) -> str:
    """A session as the interpreter shows it, up to its last output.

    >>> prompt(("for n in [1]:", "    n", "n + 1"))
    '>>> for n in [1]:\\n...     n\\n...\\n>>> n + 1\\n'
    """
    lines: list[str] = []
    for i, line in enumerate(session):
        inside = line.startswith(" ")
        if not inside and i and session[i - 1].startswith(" "):
            lines.append("...")
        lines.append(f"... {line}" if inside else f">>> {line}")
    return "\n".join(lines) + "\n"


def sessions(draw: Callable[[Draws], tuple[Session, Session]]) -> Phenomenon:
    """The crossing of two sessions and their outputs."""

    def phenomenon(draws: Draws) -> Crossed:
        first, second = draw(draws)
        return crossed(prompt(first), prompt(second), output_of(first), output_of(second))

    phenomenon.__doc__ = draw.__doc__
    return phenomenon


def numbers(draws: Draws, least: int = 3, most: int = 6, below: int = 20) -> list[int]:
    """Different numbers."""
    count = least + draws.below(most - least + 1)
    found: list[int] = []
    while len(found) < count:
        number = draws.below(below)
        if number not in found:
            found.append(number)
    return found


def other(draws: Draws, options: Any, than: Any) -> Any:
    """One of the options that is not `than`."""
    return draws.one_of([option for option in options if option != than])


def arithmetic(draws: Draws) -> tuple[Session, Session]:
    """Whole numbers with + - * // %."""
    a, b, c = (2 + draws.below(18) for _ in range(3))
    first, second = draws.one_of(["+", "-", "*"]), draws.one_of(["+", "-", "*", "//", "%"])
    return (f"{a} {first} {b} {second} {c}",), (f"{c} {first} {b} {second} {a}",)


def precedence(draws: Draws) -> tuple[Session, Session]:
    """Brackets and the order of operations."""
    a, b, c = (2 + draws.below(18) for _ in range(3))
    first, second = draws.one_of(["+", "-"]), draws.one_of(["*", "//", "%"])
    return (f"({a} {first} {b}) {second} {c}",), (f"{a} {first} {b} {second} {c}",)


def truth(draws: Draws) -> tuple[Session, Session]:
    """Comparisons, and, or, not, in."""
    a, b = numbers(draws, 2, 2, 100)
    row = numbers(draws)
    present, absent = row[0], max(row) + 1
    return draws.one_of(
        (
            ((f"{a} < {b}",), (f"{b} < {a}",)),
            ((f"{a} != {b}",), (f"{a} == {b}",)),
            ((f"{a} == {a} and {a} > {b}",), (f"{a} == {a} and {b} > {a}",)),
            ((f"not {a} <= {b}",), (f"not {b} <= {a}",)),
            ((f"{present} in {row}",), (f"{absent} in {row}",)),
            ((f"{absent} not in {row}",), (f"{present} not in {row}",)),
            ((f"{a} > {b} or {b} > {a + b + 1}",), (f"{b} > {a} or {b} > {a + b + 1}",)),
        )
    )


def indexing(draws: Draws) -> tuple[Session, Session]:
    """An item of a list or a character of a text, from the front or the back."""
    row: Any = draws.one_of((numbers(draws, 4, 6, 100), draws.one_of(WORDS)))
    first = draws.below(len(row))
    second = other(draws, range(-len(row), len(row)), first)
    return (f"{row!r}[{first}]",), (f"{row!r}[{second}]",)


def slicing(draws: Draws) -> tuple[Session, Session]:
    """Parts of lists and texts."""
    row: Any = draws.one_of((numbers(draws, 5, 7, 100), draws.one_of(WORDS)))
    cuts = ("1:3", "2:4", ":2", ":3", "2:", "3:", "-2:", ":-1", ":-2", "::2", "1::2", "::-1", "1:-1", "-3:-1")
    first = draws.one_of(cuts)
    return (f"{row!r}[{first}]",), (f"{row!r}[{other(draws, cuts, first)}]",)


def text_methods(draws: Draws) -> tuple[Session, Session]:
    """Methods of texts."""
    word, letter = draws.one_of(WORDS), draws.one_of("aeiort")
    made = (
        ".upper()",
        ".capitalize()",
        f".replace('{letter}', '')",
        f".replace('{letter}', 'x')",
        " * 2",
        "[::-1]",
    )
    found = (f".count('{letter}')", f".find('{letter}')", f".index('{word[2]}')", f".rfind('{word[3]}')")
    asked = (
        f".startswith('{word[:2]}')",
        f".endswith('{word[:2]}')",
        ".islower()",
        ".isupper()",
        ".isdigit()",
    )
    options = draws.one_of((made, made, found, asked))
    first = draws.one_of(options)
    return (f"{word!r}{first}",), (f"{word!r}{other(draws, options, first)}",)


def split_and_join(draws: Draws) -> tuple[Session, Session]:
    """Texts to lists of words and back."""
    words = [draws.one_of(WORDS) for _ in range(3)]
    text = " ".join(words)
    options = (
        f"{text!r}.split()[{draws.below(3)}]",
        f"{text!r}.split()[{-1 - draws.below(3)}]",
        f"'-'.join({words})",
        f"''.join({words[::-1]})",
        f"'-'.join(sorted({words}))",
        f"{text!r}.title()",
    )
    first = draws.one_of(options)
    return (first,), (other(draws, options, first),)


def list_methods(draws: Draws) -> tuple[Session, Session]:
    """A list after one of its methods has changed it."""
    row, new = numbers(draws, 4, 5, 30), 30 + draws.below(60)
    place = draws.below(len(row))
    changes = (
        f"x.append({new})", f"x.insert({place}, {new})", f"x.remove({row[place]})", "x.sort()", "x.reverse()",
        f"x[{place}] = {new}", f"x.extend([{new}, {row[0]}])", f"x += [{new}]", f"del x[{place}]",
    )  # fmt: skip
    first = draws.one_of(changes)
    return (f"x = {row}", first, "x"), (f"x = {row}", other(draws, changes, first), "x")


def dictionaries(draws: Draws) -> tuple[Session, Session]:
    """Keys and values."""
    keys = [draws.one_of(WORDS[:8]), draws.one_of(WORDS[8:16]), draws.one_of(WORDS[16:])]
    values = dict(zip(keys, numbers(draws, 3, 3, 50), strict=True))
    first, second = draws.one_of(((keys[0], keys[1]), (keys[2], keys[0]), (keys[1], keys[2])))
    change = f"d[{first!r}] = {50 + draws.below(40)}"
    options = (
        (f"d[{first!r}]",), (f"d[{second!r}]",), (f"d.get('zebra', {draws.below(9)})",),
        (change, f"d[{first!r}]"),
        (change, "sum(d.values())"), ("sum(d.values())",), ("max(d.values())",), ("min(d.values())",),
    )  # fmt: skip
    one = draws.one_of(options)
    return (f"d = {values}", *one), (f"d = {values}", *other(draws, options, one))


def functions_of_lists(draws: Draws) -> tuple[Session, Session]:
    """len, sum, max, sorted and the like."""
    row = numbers(draws, 4, 6, 40)
    single = (
        f"max({row})",
        f"min({row})",
        f"sum({row})",
        f"len({row})",
        f"sorted({row})[1]",
        f"{row}.index({row[2]})",
    )
    many = (
        f"sorted({row})", f"sorted({row}, reverse=True)", f"list(reversed({row}))",
        f"list(enumerate({row[:3]}))",
        f"list(zip({row[:2]}, {row[2:4]}))", f"sorted({row})[:3]", f"list(range({row[0]}, {row[0] + 4}))",
    )  # fmt: skip
    options = draws.one_of((single, many))
    first = draws.one_of(options)
    return (first,), (other(draws, options, first),)


def comprehensions(draws: Draws) -> tuple[Session, Session]:
    """List comprehensions."""
    row, limit, step = numbers(draws, 4, 6, 20), 5 + draws.below(10), 2 + draws.below(3)
    options = (
        f"[n * {step} for n in {row}]", f"[n + {step} for n in {row}]", f"[n for n in {row} if n > {limit}]",
        f"[n for n in {row} if n < {limit}]", f"[n for n in {row} if n % 2 == 0]",
        f"[n * n for n in {row[:3]}]",
        f"[n % {step} for n in {row}]", f"[n - {row[0]} for n in {row}]",
    )  # fmt: skip
    first = draws.one_of(options)
    return (first,), (other(draws, options, first),)


def loops(draws: Draws) -> tuple[Session, Session]:
    """Variables after a loop."""
    row, limit = numbers(draws, 3, 5, 12), 3 + draws.below(6)
    bodies = (
        ("    total += n",), ("    total += n * 2",), ("    total -= n",), ("    total = n",),
        (f"    if n > {limit}:", "        total += n"), (f"    if n > {limit}:", "        total += 1"),
        ("    total = total * 2 + n",), ("    total += 1",), ("    total = max(total, n)",),
    )  # fmt: skip
    first = draws.one_of(bodies)
    head = ("total = 0", f"for n in {row}:")
    return (*head, *first, "total"), (*head, *other(draws, bodies, first), "total")


def functions(draws: Draws) -> tuple[Session, Session]:
    """Functions of one line, called once or twice."""
    a, b, x = (2 + draws.below(9) for _ in range(3))
    bodies = (
        f"x * {a} + {b}",
        f"x + {a} * {b}",
        f"(x + {a}) * {b}",
        f"x * x - {a}",
        f"{a} - x",
        f"x % {a} + {b}",
    )
    calls = (
        f"f({x})",
        f"f(f({x}))",
        f"f({x}) + f({x + 1})",
        f"f(f({x}) - {a})",
        f"[f(n) for n in [{x}, {a}]][1]",
    )
    body, call = draws.one_of(bodies), draws.one_of(calls)
    changed = draws.below(2)
    second_body = body if changed else other(draws, bodies, body)
    second_call = other(draws, calls, call) if changed else call
    return ("def f(x):", f"    return {body}", call), ("def f(x):", f"    return {second_body}", second_call)


def types_and_numbers(draws: Draws) -> tuple[Session, Session]:
    """Division, powers, and what is a text and what a number."""
    a, b = 2 + draws.below(30), 2 + draws.below(4)
    kinds = (
        (f"{a} / {b}", f"{a} // {b}"),
        (f"'{a}' + '{b}'", f"str({a} + {b})"),
        (f"int('{a}') * {b}", f"int('{a}' * 2) + {b}"),
        (f"{a} ** 2", f"{a} * 2"),
        (f"divmod({a}, {b})", f"({a} % {b}, {a} // {b})"),
        (f"type({a} / {b}).__name__", f"type({a} * {b}).__name__"),
        (f"'{a}' * {b}", f"str({a} * {b})"),
        (f"round({a} / {b})", f"round({a} / {b}, 1)"),
        (f"isinstance({a}, int)", f"isinstance('{a}', int)"),
        (f"-{a} // {b}", f"-({a} // {b})"),
    )
    first, second = draws.one_of(kinds)
    return (first,), (second,)


PHENOMENA: Mapping[str, Phenomenon] = {
    draw.__name__: sessions(draw)
    for draw in (
        arithmetic, precedence, truth, indexing, slicing, text_methods, split_and_join, list_methods,
        dictionaries, functions_of_lists, comprehensions, loops, functions, types_and_numbers,
    )
}  # fmt: skip
"""Name → what draws its crossings."""
