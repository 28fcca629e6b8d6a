"""Prints the structure of the package: its rooms in order, and what a reader would trip over.

Exit code 1 if anything does.

  python tools/rooms.py

Counts arrows that run back up (a module that imports from a room above its own, also inside functions),
circles of modules, modules of over 500 lines, and classes of one name. The order of the rooms is the contract
in pyproject.toml, which import-linter checks too; what it ignores is ignored here.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = "llm_jax"
LONGEST = 500
"""Lines of a module."""


def contract() -> dict[str, Any]:
    """The contract of the rooms in pyproject.toml."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (found,) = (c for c in tool["contracts"] if c["type"] == "layers")
    return found


def order_of_rooms() -> list[tuple[str, ...]]:
    """The floors of the contract in pyproject.toml, from the top down; rooms of one floor don't know each
    other.
    """
    return [tuple(name.strip().strip("()") for name in floor.split("|")) for floor in contract()["layers"]]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that a module imports, at its top or inside a function; not what only
    types need.
    """
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        (inner.lineno, inner.col_offset)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
        if isinstance(inner, ast.ImportFrom | ast.Import)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom | ast.Import) or (node.lineno, node.col_offset) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif node.module and node.module.split(".")[0] == PACKAGE:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            circle = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(circle) > 1:
                found.append(sorted(circle))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def room_of(module: str) -> str:
    """The first part of a module's name below the package."""
    return module.split(".")[1] if "." in module else ""


def main() -> int:
    known = modules()
    graph = {name: imports_of(name, path, known) for name, path in known.items()}
    floors = order_of_rooms()
    floor_of = {room: len(floors) - i for i, floor in enumerate(floors) for room in floor}
    files: defaultdict[str, int] = defaultdict(int)
    lines: defaultdict[str, int] = defaultdict(int)
    for name, path in known.items():
        files[room_of(name)] += 1
        lines[room_of(name)] += len(path.read_text().splitlines())
    print("rooms, top to bottom:")
    for floor in floors:
        print("  " + "   ".join(f"{room} ({files[room]} files, {lines[room]:,} lines)" for room in floor))
    problems = [
        f"no floor in the contract: {room}"
        for room in files
        if room not in floor_of and room not in ("", "cluster")
    ]

    back = [
        f"{name} -> {other}"
        for name in graph
        for other in sorted(graph[name])
        if room_of(name) != room_of(other)
        and f"{name} -> {other}" not in contract()["ignore_imports"]
        and floor_of.get(room_of(name), 99) <= floor_of.get(room_of(other), 0)
    ]
    packages = {name: {o for o in others if o in graph} for name, others in graph.items()}
    rings = circles(packages)
    long = [
        f"{path.relative_to(ROOT)} ({n} lines)"
        for path in known.values()
        if (n := len(path.read_text().splitlines())) > LONGEST
    ]
    where = defaultdict(list)
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                where[node.name].append(name)
    twice = [f"{name}: {', '.join(places)}" for name, places in sorted(where.items()) if len(places) > 1]
    for title, rows in (
        ("arrows that run back up", back),
        ("circles of modules", [", ".join(ring) for ring in rings]),
        (f"files over {LONGEST} lines", long),
        ("duplicate class names", twice),
    ):
        print(f"{title}: {len(rows)}")
        for row in rows:
            print(f"  {row}")
        problems += rows
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
