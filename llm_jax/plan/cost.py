"""The cost of each kernel of a compiled step: FLOPs from the shapes it multiplies, bytes from those it reads
and writes.

FLOPs are those of matrix products, convolutions and attention, a multiply-add being 2; recomputation counts,
and so does every loop trip, but elementwise operations don't. Attention counts the keys that its mask lets a
query see (rows of one document). Seconds are the larger of FLOPs at peak and bytes at memory bandwidth, each
times an efficiency, and a launch (`efficiency.py`). Products are costed by their shapes, whichever kernel a
compiler without a device chose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llm_jax.layout.hardware import Hardware
from llm_jax.layout.hlo import Computation, Instruction, Module, item_bytes
from llm_jax.plan.efficiency import HIGHEST_PRECISION, HOST_BANDWIDTH, Efficiency

NO_KERNEL = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency",
    "opt-barrier", "partition-id", "replica-id", "domain",
}  # fmt: skip
"""Opcodes of instructions that run no kernel."""
DATA_MOVEMENT = {
    "copy", "transpose", "reshape", "bitcast", "broadcast", "slice", "dynamic-slice", "dynamic-update-slice",
    "concatenate", "pad", "gather", "convert", "iota", "reverse", "copy-start",
}  # fmt: skip
"""Opcodes that only move or convert data."""
WRAPPERS = {"fusion", "fusion-start", "async-start", "call"}
"""Opcodes that stand for the computation they call."""
SAME_ELEMENTS = {"bitcast", "reshape", "copy", "transpose", "convert"}
"""Opcodes whose result has the elements of their operand."""
FORWARD, BACKWARD = "attention forward", "attention backward"
HOST_MEMORY = "S(5)"
"""The host's memory space in an HLO layout."""


@dataclass(frozen=True)
class KernelCost:
    """The cost of one run of one kernel."""

    name: str
    """Name of the HLO instruction."""
    kind: str
    """matmul, convolution, attention forward, attention backward, reduction, elementwise, copy, host copy, or
    a custom call's target."""
    source: str
    """Place in the model that the kernel comes from (`Instruction.op_name`)."""
    flops: float
    """Counted as in this module's docstring."""
    bytes: float
    """Bytes that one run reads and writes."""
    rate: str
    """Which peak its FLOPs run at: "bfloat16", "float32", ..."""
    passes: float = 1.0
    """Passes of the tensor cores over the product: 3 or 6 for float32 emulated with bfloat16."""

    def seconds(self, hardware: Hardware, efficiency: Efficiency) -> float:
        """Predicted duration of one run."""
        if self.kind == "host copy":
            return self.bytes / HOST_BANDWIDTH + efficiency.launch
        share = {FORWARD: efficiency.attention_forward, BACKWARD: efficiency.attention_backward}.get(
            self.kind, efficiency.matmul
        )
        peak = (
            hardware.peak_flops.get(self.rate) or hardware.peak_flops["bfloat16"]
        )  # a device without 8-bit products runs them at its bfloat16 rate
        return (
            max(
                self.flops * self.passes / (peak * share),
                self.bytes / (hardware.memory_bandwidth * efficiency.memory),
            )
            + efficiency.launch
        )


def read_kernel(
    module: Module, computation: Computation, instruction: Instruction, widened: bool = False
) -> KernelCost:
    """The cost of an instruction that is a kernel: its opcode is not in NO_KERNEL, and it is no loop and no
    collective.

    widened: the compiler computes bfloat16 in float32, as XLA's for CPUs does; products then count in the
    dtype that they had before.
    """
    kind, flops, rate, passes = _products(module, computation, instruction, widened)
    read, written = (
        read_bytes(module, computation, instruction),
        written_bytes(module, computation, instruction),
    )
    traffic = read + written
    if kind == "copy" and (
        HOST_MEMORY in instruction.type_text
        or any(HOST_MEMORY in operand.type_text for operand in computation.operands_of(instruction))
    ):
        kind, traffic = "host copy", min(read, written)  # over the bus once
    return KernelCost(instruction.name, kind, instruction.op_name, flops, traffic, rate, passes)


# --- FLOPs ---


def _products(
    module: Module, computation: Computation, instruction: Instruction, widened: bool
) -> tuple[str, float, str, float]:
    """(kind, FLOPs, rate, passes) of a kernel."""
    if instruction.target.startswith("__cudnn$fmha"):
        kind = BACKWARD if "Backward" in instruction.target else FORWARD
        return (
            kind,
            attention_flops(computation, instruction),
            rate_name(computation.operands_of(instruction)[0].shape.dtype),
            1.0,
        )
    flops, rate, passes, kind = 0.0, "bfloat16", 1.0, ""
    opcodes = set()
    for inside, part in fused_parts(module, computation, instruction):
        opcodes.add(part.opcode)
        product = product_flops(inside, part)
        if product:
            flops += product
            operand = inside.operands_of(part)[0]
            rate = rate_name(
                dtype_before_widening(module, inside, operand) if widened else operand.shape.dtype
            )
            passes = _passes(part)
            kind = "convolution" if part.opcode == "convolution" or "conv" in part.target else "matmul"
    if not kind:
        kind = instruction.target or _kind(opcodes)
    return kind, flops, rate, passes


def _kind(opcodes: set[str]) -> str:
    """The kind of a kernel without products, by the opcodes that it fuses."""
    if opcodes & {"reduce", "reduce-window", "sort"}:
        return "reduction"
    return "copy" if opcodes <= DATA_MOVEMENT | NO_KERNEL | WRAPPERS else "elementwise"


def fused_parts(
    module: Module, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """Yields the instruction and all that it fuses, each with its computation."""
    yield computation, instruction
    if instruction.opcode in WRAPPERS:
        for name in instruction.called:
            inside = module.computations[name]
            for part in inside:
                yield from fused_parts(module, inside, part)


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a matrix product or convolution, from its shapes; 0 for any other instruction."""
    if instruction.opcode == "dot":
        lhs = computation.operands_of(instruction)[0].shape
        return (
            2.0
            * instruction.shape.elements
            * math.prod(lhs.dims[d] for d in instruction.numbers("lhs_contracting_dims"))
        )
    if instruction.opcode == "ragged-dot" or instruction.target.endswith("groupedMatmul"):
        return (
            2.0 * computation.operands_of(instruction)[0].shape.elements * instruction.shape.dims[-1]
        )  # every row is multiplied with one group's matrix
    if instruction.target.startswith("__cublas$"):
        config = instruction.backend_config["gemm_backend_config"]["dot_dimension_numbers"]
        lhs = computation.operands_of(instruction)[0].shape
        return (
            2.0
            * instruction.shape.elements
            * math.prod(lhs.dims[int(d)] for d in config["lhs_contracting_dimensions"])
        )
    if instruction.opcode == "convolution" or instruction.target.startswith("__cudnn$conv"):
        labels = instruction.attribute("dim_labels")
        assert labels
        filters = computation.operands_of(instruction)[1].shape
        return (
            2.0
            * instruction.shape.elements
            * filters.elements
            / filters.dims[labels.split("_")[1].split("->")[0].index("o")]
        )
    return 0.0


def _passes(product: Instruction) -> float:
    """Passes of the tensor cores that a product's precision takes."""
    algorithm = product.attribute("algorithm") or ""
    for times in (3, 6, 9):
        if algorithm.endswith(f"_x{times}"):
            return float(times)
    return HIGHEST_PRECISION if "highest" in (product.attribute("operand_precision") or "") else 1.0


def attention_flops(computation: Computation, call: Instruction) -> float:
    """FLOPs of cuDNN's fused attention: 2 products forward, 5 backward (scores again, and the gradients of q,
    k, v and the weights)."""
    width_k, width_v = (computation.operands_of(call)[i].shape.dims[-1] for i in (0, 2))
    config = call.backend_config["cudnn_fmha_backend_config"]
    batch, heads, queries, keys = (int(n) for n in config["intermediate_tensor_shape"]["dimensions"])
    window = int(config.get("sliding_window_length", 0))
    pairs = batch * heads * visible_pairs(queries, keys, "CAUSAL" in config["mask_type"], window or None)
    return 2.0 * pairs * (width_k + width_v if "Backward" not in call.target else 3 * width_k + 2 * width_v)


def visible_pairs(queries: int, keys: int, causal: bool, window: int | None) -> int:
    """Number of (query, key) pairs that a mask lets through. First positions are aligned; a window includes
    the query itself.

    >>> visible_pairs(3, 3, True, None), visible_pairs(3, 3, True, 2)
    (6, 5)
    >>> visible_pairs(3, 4, False, None), visible_pairs(2, 4, True, None)
    (12, 3)
    """
    if not causal:
        return queries * keys
    window = min(window or queries, queries)
    full = window * (window + 1) // 2 + (queries - window) * window
    beyond = max(0, queries - keys)  # queries after the last key
    return full - sum(min(window, past) for past in range(1, beyond + 1))


RATES = {"bf16": "bfloat16", "f16": "bfloat16", "f32": "float32", "f64": "float64"}


def rate_name(dtype: str) -> str:
    """The key of `Hardware.peak_flops` for products of an HLO dtype."""
    return RATES.get(dtype, "float8" if dtype.startswith("f8") else "bfloat16")


def dtype_before_widening(module: Module, computation: Computation, instruction: Instruction) -> str:
    """The dtype that a value had before XLA's CPU compiler, which computes in float32, widened it."""
    while instruction.shape.dtype == "f32":
        if instruction.opcode == "fusion" and len(instruction.shapes) == 1:
            computation = module.computations[instruction.called[0]]
            instruction = computation.root
        elif instruction.opcode in SAME_ELEMENTS | {"all-gather"}:
            instruction = computation.operands_of(instruction)[0]
        elif instruction.opcode == "reduce-precision" and instruction.attribute("mantissa_bits") == "7":
            return "bf16"
        else:
            break
    return instruction.shape.dtype


# --- bytes ---


def read_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes that a kernel reads: its operands, or the slices of them that it uses. Arrays updated in place
    are not read."""
    operands = computation.operands_of(instruction)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return instruction.bytes
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return sum(operand.bytes for operand in operands[1:])
    if instruction.opcode not in WRAPPERS:
        return sum(operand.bytes for operand in operands)
    fused = module.computations[instruction.called[0]]
    return sum(
        min(float(operand.bytes), _bytes_read_through(fused, fused.parameters[i], operand))
        for i, operand in enumerate(operands)
    )


def _bytes_read_through(fused: Computation, value: Instruction, operand: Instruction) -> float:
    """Bytes of `operand` that a fusion reads through `value`, which is a parameter or has its elements."""
    if len(operand.shapes) != 1:
        return operand.bytes
    total, item = 0.0, item_bytes(operand.shape.dtype)
    for user in fused.users[value.name]:
        first = user.operands[0] == value.name
        if user.opcode in ("slice", "dynamic-slice", "gather") and first:
            total += user.shape.elements * item
        elif user.opcode in ("dynamic-update-slice", "scatter") and first:
            total += 0.0
        elif user.opcode in SAME_ELEMENTS:
            total += (
                _bytes_read_through(fused, user, operand)
                if fused.users[user.name]
                else user.shape.elements * item
            )
        else:
            return operand.bytes
    return total if fused.users[value.name] else (operand.bytes if value.root else 0.0)


def written_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes that a kernel writes: its results, or the slice that it updates in place."""
    if instruction.opcode in WRAPPERS:
        fused = module.computations[instruction.called[0]]
        roots = fused.operands_of(fused.root) if fused.root.opcode == "tuple" else [fused.root]
        return sum(_bytes_updated(fused, root) for root in roots)
    return _bytes_updated(computation, instruction)


def _bytes_updated(computation: Computation, result: Instruction) -> float:
    """Bytes of `result` that are written, if the rest is updated in place."""
    source = result
    while source.opcode in SAME_ELEMENTS and source.operands:
        source = computation.operands_of(source)[0]
    if source.opcode == "dynamic-update-slice":
        return computation.operands_of(source)[1].shape.elements * item_bytes(result.shape.dtype)
    if source.opcode == "scatter":
        return computation.operands_of(source)[-1].shape.elements * item_bytes(result.shape.dtype)
    return result.bytes
