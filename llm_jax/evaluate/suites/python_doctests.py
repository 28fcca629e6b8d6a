"""The doctests of the installed Python's standard library: which output follows.

An item is a docstring's session up to an example; its answers are the example's own output and those of three
examples of other docstrings, of the same kind (a number, a text, a list) and about as long. Nothing is
run: the outputs are those that the library's authors wrote. Another version of Python has other items.
"""

from __future__ import annotations

import ast
import doctest
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from llm_jax.data.stdlib_files import stdlib_documents
from llm_jax.evaluate.suites.crossed import Crossed

LONGEST_CONTEXT = 1_200
"""Characters."""
LONGEST_OUTPUT = 70
"""Characters; of one line."""
TOGETHER = 4
PER_FILE = 60
"""Examples of one file at most, so that no module is most of the task."""
"""Examples whose outputs are each other's answers."""
VAGUE = ("...", "Traceback", " at 0x", "<BLANKLINE>", "/tmp")
"""What no reader could predict."""


class DocExample(NamedTuple):
    """An example of a docstring."""

    docstring: str
    """File and number of the docstring."""
    context: str
    output: str


def doctests(seed: int) -> Iterator[Crossed]:
    """Crossings of examples: the outputs of `TOGETHER` examples of different docstrings."""
    taken: Counter[str] = Counter()
    some = []
    for example in sorted(examples(stdlib_documents()), key=lambda e: digest(f"{seed} {e.context}")):
        taken[example.docstring.partition(":")[0]] += 1
        if taken[example.docstring.partition(":")[0]] <= PER_FILE:
            some.append(example)
    order = sorted(
        some,
        key=lambda e: (kind_of(e.output), len(e.output) // 2, digest(f"{seed} {e.context}")),
    )
    together: list[DocExample] = []
    for example in order:
        if together and kind_of(example.output) != kind_of(together[0].output):
            together = []
        if any(example.docstring == e.docstring or example.output == e.output for e in together):
            continue
        together.append(example)
        if len(together) == TOGETHER:
            yield Crossed(tuple(e.context for e in together), tuple(e.output for e in together))
            together = []


def examples(documents: Iterable[tuple[str, bytes]]) -> Iterator[DocExample]:
    """The examples in the docstrings of Python files, (path, content), that have one short line of output."""
    seen: set[str] = set()
    for path, content in documents:
        if not path.endswith(".py") or b">>> " not in content:
            continue
        for number, docstring in enumerate(docstrings(content)):
            for context, output in sessions_of(docstring):
                if context not in seen:
                    seen.add(context)
                    yield DocExample(f"{path}:{number}", context, output)


def docstrings(content: bytes) -> Iterator[str]:
    """The docstrings of a file that have examples."""
    try:
        tree = ast.parse(content)
    except SyntaxError:  # some files are of another Python: lib2to3's
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if ">>> " in text:
                yield text


def sessions_of(docstring: str) -> Iterator[tuple[str, str]]:
    """(session up to an example, its output) of each example with one short line of output.

    >>> list(sessions_of(">>> x = 1\\n>>> x + 1\\n2\\n"))
    [('>>> x = 1\\n>>> x + 1\\n', '2')]
    """
    try:
        parsed = doctest.DocTestParser().get_examples(docstring)
    except ValueError:  # a docstring whose examples are not indented as doctest wants
        return
    session = ""
    for example in parsed:
        source = example.source.rstrip("\n").split("\n")
        session += f">>> {source[0]}\n" + "".join(f"... {line}".rstrip() + "\n" for line in source[1:])
        output = example.want.rstrip("\n")
        clear = output and "\n" not in output and not any(word in output for word in VAGUE)
        if (
            clear
            and len(output) <= LONGEST_OUTPUT
            and len(session) <= LONGEST_CONTEXT
            and not example.options
        ):
            yield session, output
        session += example.want


def kind_of(output: str) -> str:
    """The type of an output as Python would read it, the name that it calls, or "other".

    >>> kind_of("[1, 2]"), kind_of("3.5"), kind_of("Decimal('3')"), kind_of("ham and eggs")
    ('list', 'float', 'Decimal', 'other')
    """
    try:
        return type(ast.literal_eval(output)).__name__
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        called = re.match(r"(\w+)\(", output)
        return called[1] if called else "other"


def digest(text: str) -> str:
    """sha256 hex of a text, for an order without meaning."""
    return hashlib.sha256(text.encode()).hexdigest()
