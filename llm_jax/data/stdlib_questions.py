"""Questions about the standard library of Python, made of its signatures and docstrings with `ast`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

from llm_jax.data.stdlib_files import stdlib_documents

LONGEST = 80
"""Characters of an answer."""


def questions() -> Iterator[tuple[str, str]]:
    """(question, answer) about public functions and classes of public modules, in the order of the files."""
    for path, content in stdlib_documents():
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if path.endswith(".py") and not any(part.startswith("_") for part in module.split(".")):
            yield from questions_about(module, content.decode())


def questions_about(module: str, source: str) -> Iterator[tuple[str, str]]:
    """(question, answer) about the public functions and classes of a module.

    >>> list(questions_about("m", "def f(a, b=1):\\n    'Adds. Slowly.'"))
    [('What does m.f do?', 'Adds.'), ('Signature of m.f?', 'f(a, b=1)')]
    """
    try:
        body = ast.parse(source).body
    except SyntaxError:  # some files are of another Python: lib2to3's
        return
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        name = f"{module}.{node.name}"
        if purpose := first_sentence(ast.get_docstring(node) or ""):
            yield f"What does {name} do?", purpose
        if isinstance(node, ast.FunctionDef):
            signature = f"{node.name}({ast.unparse(node.args)})"
            if len(signature) <= LONGEST:
                yield f"Signature of {name}?", signature


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring in one line; empty for one that is longer than an answer may be."""
    paragraph = " ".join(inspect.cleandoc(docstring).partition("\n\n")[0].split())
    sentence, end, _ = paragraph.partition(". ")
    sentence += end.strip()
    return sentence if len(sentence) <= LONGEST else ""
