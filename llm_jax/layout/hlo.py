"""Parses XLA's compiled program, the text of scheduled HLO, into computations and instructions.

It reads the text of XLA's GPU and CPU compilers of JAX 0.10 and 0.11. Instructions keep the order of the
text, which is the order in which they run. Attributes are parsed on first use, so a program of 512 devices
parses in a second.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

_LEAF = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+|f4\w+|c\d+|token|opaque)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_BITS = re.compile(r"\d+")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LISTS = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\(((?:[^()]|\([^()]*\))*)\))? ?\{([^}]*)\}"
)
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def item_bytes(dtype: str) -> int:
    """Bytes of one element of an HLO type: 2 for "bf16"; less than a byte counts as one."""
    if dtype in ("token", "opaque"):
        return 0
    bits = _BITS.search(dtype)
    return max(1, int(bits[0]) // 8) if bits else 1


class Shape(NamedTuple):
    """An array: its HLO dtype ("bf16") and dims."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """The array's size in bytes."""
        return self.elements * item_bytes(self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


def read_shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of an HLO type, which may be a tuple: "(f32[2,3]{1,0}, s32[])" → f32[2,3], s32[]."""
    return tuple(Shape(dtype, integers(dims)) for dtype, dims in _LEAF.findall(text))


def integers(text: str) -> tuple[int, ...]:
    """The integers of a list: "8,4096" → (8, 4096)."""
    return tuple(int(n) for n in text.split(",") if n.strip())


@dataclass(frozen=True, eq=False)
class Instruction:
    """An instruction: one line of a computation."""

    name: str
    opcode: str
    type_text: str
    """The type of its result, as HLO prints it."""
    operands: tuple[str, ...]
    """The names of its operands, instructions of the same computation."""
    rest: str
    """The text after the operands: attributes, metadata, backend_config."""
    root: bool
    """True for the result of its computation."""
    argument: str
    """The text between the parentheses: a parameter's number, a constant's value."""

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The arrays of its result; one, unless it is a tuple."""
        return read_shapes(self.type_text)

    @property
    def shape(self) -> Shape:
        """The array of its result, or the first one of a tuple."""
        return self.shapes[0]

    @property
    def bytes(self) -> int:
        """The size of its result in bytes."""
        return sum(shape.bytes for shape in self.shapes)

    def attribute(self, name: str) -> str | None:
        """The text of an attribute that is one word or a list in braces, without the braces; None if it is
        missing."""
        found = re.search(rf"[ ,]{name}=(?:\{{([^}}]*)\}}|([^\s,]+))", self.rest)
        return None if found is None else found[1] if found[1] is not None else found[2]

    def numbers(self, name: str) -> tuple[int, ...]:
        """An attribute that is a list of integers: `lhs_contracting_dims={1}` → (1,). Empty if it is
        missing."""
        return integers(self.attribute(name) or "")

    @property
    def op_name(self) -> str:
        """Its origin in the JAX program: "jit(step)/jvp()/while/body/closed_call/BTD,DF->BTF/dot_general"."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return found[1].replace("\\'", "'") if found else ""

    @property
    def target(self) -> str:
        """The target of a custom call; "" for other instructions."""
        found = re.search(r'custom_call_target="([^"]+)"', self.rest)
        return found[1] if found else ""

    @cached_property
    def called(self) -> tuple[str, ...]:
        """The names of the computations that it calls, fuses, repeats or chooses from."""
        lists = [
            name.strip().lstrip("%")
            for names in _CALLED_LISTS.findall(self.rest)
            for name in names.split(",")
        ]
        return (*_CALLED.findall(self.rest), *lists)

    @cached_property
    def backend_config(self) -> dict[str, Any]:
        """The backend's notes about the instruction; {} if there are none."""
        start = self.rest.find("backend_config={")
        if start < 0:
            return {}
        return json.JSONDecoder().raw_decode(self.rest, start + len("backend_config="))[0]

    @property
    def trips(self) -> int | None:
        """How often a loop runs; None where XLA doesn't know."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.rest)
        return int(found[1]) if found else None

    def replica_groups(self, devices: int) -> np.ndarray:
        """The groups of devices that a collective runs over: int [groups, size], positions in the program's
        order of devices.

        XLA prints them in three forms: lists, `[8,8]<=[64]T(1,0)` (an iota, reshaped and transposed), and
        axes of a mesh. Without groups, or with empty ones, all devices are one group. Groups of different
        sizes raise ValueError.
        """
        text = self.rest
        if mesh := _MESH.search(text):
            return _mesh_groups(*mesh.groups())
        if lists := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", text):
            groups = [integers(group) for group in re.findall(r"\{([\d,]*)\}", lists[1])]
            if len({len(group) for group in groups}) != 1:
                raise ValueError(f"{self.name}: replica groups of different sizes")
            return np.array(groups).reshape(len(groups), -1)
        if iota := re.search(r"replica_groups=(\[\S+)", text):
            return _iota(iota[1], None)
        return np.arange(devices)[None]

    @property
    def source_target_pairs(self) -> list[tuple[int, int]]:
        """(sender, receiver) pairs of a collective-permute, positions in the program's order of devices."""
        found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", self.rest)
        return [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", found[1])] if found else []


def _iota(text: str, dims: tuple[int, ...] | None) -> np.ndarray:
    """The devices of `[2,4]<=[4,2]T(1,0)`: 0, 1, ... in the shape on the right, transposed, in the shape on
    the left (or `dims`)."""
    found = _IOTA.match(text)
    if not found:
        raise ValueError(f"not a list of devices: {text[:80]}")
    left = integers(found[1])
    right = integers(found[2]) if found[2] else left
    order = integers(found[3]) if found[3] else range(len(right))
    return (
        np.arange(math.prod(right)).reshape(right).transpose(*order).reshape(left if dims is None else dims)
    )


def _mesh_groups(axes: str, device_ids: str | None, used: str) -> np.ndarray:
    """Groups over axes of a mesh, `mesh['a'=2,'b'=4] {'b'}`. `'b':(2)2` is the factor 2 of axis b after its
    first factor of 2."""
    names, sizes = zip(
        *((name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)), strict=True
    )
    if device_ids is None:
        devices = np.arange(math.prod(sizes)).reshape(sizes)
    elif device_ids.startswith("["):
        devices = _iota(device_ids, sizes)
    else:
        devices = np.array(integers(device_ids)).reshape(sizes)
    parts: list[tuple[str, int, int]] = [
        (name, int(before or 1), int(size or 0)) for name, before, size in _AXIS.findall(used)
    ]
    shape: list[int] = []  # the mesh's axes as factors, and for each factor whether it is within a group
    within: list[bool] = []
    for name, size in zip(names, sizes, strict=True):
        done = 1
        for _, before, part in sorted(p for p in parts if p[0] == name):
            part = part or size
            shape += [before // done, part]
            within += [False, True]
            done = before * part
        shape.append(size // done)
        within.append(False)
    across = [i for i, inside in enumerate(within) if not inside]
    inside = [i for i, inside in enumerate(within) if inside]
    return devices.reshape(shape).transpose(*across, *inside).reshape(-1, math.prod(shape[i] for i in inside))


@dataclass(frozen=True, eq=False)
class Computation:
    """A computation: instructions by name, in the order in which they run."""

    name: str
    instructions: dict[str, Instruction]

    @cached_property
    def root(self) -> Instruction:
        """The instruction that it returns."""
        return next(i for i in reversed(self.instructions.values()) if i.root)

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Its parameters by number."""
        return {int(i.argument): i for i in self.instructions.values() if i.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The name of each instruction → the instructions that have it as an operand."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                users[operand].append(instruction)
        return users

    def operands_of(self, instruction: Instruction) -> list[Instruction]:
        """The operands of an instruction."""
        return [self.instructions[name] for name in instruction.operands]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())


@dataclass(frozen=True, eq=False)
class Module:
    """A compiled program: its computations by name."""

    computations: dict[str, Computation]
    entry: Computation
    scheduled: bool
    """True if the order of the text is the order of execution."""

    def allocating(self) -> Iterator[Computation]:
        """The computations whose results are in memory; those of fusions and reductions keep theirs in
        registers."""
        inlined: set[str] = set()
        for computation in self.computations.values():
            for instruction in computation:
                if instruction.opcode in ("fusion", "fusion-start") or (
                    "to_apply=" in instruction.rest and instruction.opcode != "call"
                ):
                    inlined.update(instruction.called)
        return (c for c in self.computations.values() if c.name not in inlined)


def parse(text: str) -> Module:
    """Parses the text of a compiled program. Raises ValueError for any other text."""
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    instructions: dict[str, Instruction] | None = None
    for line in text.splitlines():
        if instructions is None:
            header = _HEADER.match(line)
            if header and not line.startswith("HloModule"):
                instructions = {}
                computation = Computation(header[2], instructions)
                computations[header[2]] = computation
                if header[1]:
                    entry = computation
        elif line.startswith("}"):
            instructions = None
        elif start := _INSTRUCTION.match(line):
            instruction = _instruction(line, start)
            instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError(f"not a compiled program: it has no ENTRY computation ({len(computations)} others)")
    return Module(computations, entry, "is_scheduled=true" in text[: text.find("\n")])


def _instruction(line: str, start: re.Match[str]) -> Instruction:
    """Parses one line, `[ROOT] %name = type opcode(operands), attributes`."""
    begin = start.end()
    end = _closing(line, begin) if line[begin] == "(" else line.index(" ", begin)
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        raise ValueError(f"not an instruction: {line[:120]}")
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close - 1]
    operands = () if opcode[1] in ("parameter", "constant") else tuple(_NAME.findall(inside))
    return Instruction(start[2], opcode[1], line[begin:end], operands, line[close:], bool(start[1]), inside)


def _closing(line: str, at: int) -> int:
    """The position after the parenthesis that closes the one at `at`."""
    depth = 0
    while True:
        opened, closed = line.find("(", at), line.find(")", at)
        if closed < 0:
            raise ValueError(f"parentheses do not close: {line[:120]}")
        if 0 <= opened < closed:
            depth, at = depth + 1, opened + 1
        else:
            depth, at = depth - 1, closed + 1
            if depth == 0:
                return at
