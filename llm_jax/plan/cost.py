"""What each kernel of a compiled step costs: FLOPs from the shapes it multiplies, bytes from those it reads and writes.

FLOPs are those of matrix products, convolutions and attention, a multiply-add being 2; recomputation counts, and so does
every loop trip, but nothing that is done element by element. Attention counts the keys that its mask lets a query see
(rows of one document). Seconds are the larger of FLOPs at peak and bytes at memory bandwidth, each times an efficiency,
and a launch (`efficiency.py`). Products are costed by their shapes, whichever kernel a compiler without a device chose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llm_jax.layout.hardware import Hardware
from llm_jax.layout.hlo import Computation, Instruction, Module, item_bytes
from llm_jax.plan.efficiency import HIGHEST_PRECISION, HOST_BANDWIDTH, Efficiency

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "opt-barrier", "partition-id",
    "replica-id", "domain",
}  # fmt: skip
"""Instructions that nothing runs for."""
MOVES = {
    "copy", "transpose", "reshape", "bitcast", "broadcast", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad", "gather",
    "convert", "iota", "reverse", "copy-start",
}  # fmt: skip
"""Instructions that move or convert data and compute nothing."""
WRAPPERS = {"fusion", "fusion-start", "async-start", "call"}
"""Instructions that stand for the computation they call."""
SAME_ELEMENTS = {"bitcast", "reshape", "copy", "transpose", "convert"}
"""Instructions that pass each element on."""
FORWARD, BACKWARD = "attention forward", "attention backward"
HOST = "S(5)"
"""Memory space of the host, in a layout."""


@dataclass(frozen=True)
class KernelCost:
    """One kernel, run once."""

    name: str
    """Of its instruction."""
    kind: str
    """matmul, convolution, attention forward, attention backward, reduction, elementwise, copy, host copy, or a custom call's target."""
    source: str
    """Where it comes from in the model (`Instruction.op_name`)."""
    flops: float
    """As the module says."""
    bytes: float
    """To and from memory."""
    rate: str
    """Which peak its FLOPs run at: "bfloat16", "float32", ..."""
    passes: float = 1.0
    """How often the tensor cores go over it: 3 or 6 for float32 made of bfloat16."""

    def seconds(self, hardware: Hardware, efficiency: Efficiency) -> float:
        """How long it runs."""
        if self.kind == "host copy":
            return self.bytes / HOST_BANDWIDTH + efficiency.launch
        share = {FORWARD: efficiency.attention_forward, BACKWARD: efficiency.attention_backward}.get(self.kind, efficiency.matmul)
        peak = hardware.peak_flops.get(self.rate) or hardware.peak_flops["bfloat16"]  # 8-bit products in the table of a device that has none
        return max(self.flops * self.passes / (peak * share), self.bytes / (hardware.memory_bandwidth * efficiency.memory)) + efficiency.launch


def read_kernel(module: Module, computation: Computation, instruction: Instruction, widened: bool = False) -> KernelCost:
    """The kernel of an instruction that is none of FREE, a loop or a collective.

    `widened`: the compiler computes bfloat16 in float32 (XLA's for CPUs); products are then costed by what they were before.
    """
    kind, flops, rate, passes = _work(module, computation, instruction, widened)
    read, written = read_bytes(module, computation, instruction), written_bytes(module, computation, instruction)
    moved = read + written
    if kind == "copy" and (HOST in instruction.type_text or any(HOST in taken.type_text for taken in computation.operands_of(instruction))):
        kind, moved = "host copy", min(read, written)  # over the bus once
    return KernelCost(instruction.name, kind, instruction.op_name, flops, moved, rate, passes)


# --- FLOPs ---


def _work(module: Module, computation: Computation, instruction: Instruction, widened: bool) -> tuple[str, float, str, float]:
    """(kind, FLOPs, rate, passes) of a kernel."""
    if instruction.target.startswith("__cudnn$fmha"):
        kind = BACKWARD if "Backward" in instruction.target else FORWARD
        return kind, attention_flops(computation, instruction), rate_name(computation.operands_of(instruction)[0].shape.dtype), 1.0
    flops, rate, passes, kind = 0.0, "bfloat16", 1.0, ""
    opcodes = set()
    for inside, part in parts(module, computation, instruction):
        opcodes.add(part.opcode)
        product = product_flops(inside, part)
        if product:
            flops += product
            operand = inside.operands_of(part)[0]
            rate = rate_name(dtype_before_widening(module, inside, operand) if widened else operand.shape.dtype)
            passes = _passes(part)
            kind = "convolution" if part.opcode == "convolution" or "conv" in part.target else "matmul"
    if not kind:
        kind = instruction.target or _kind(opcodes)
    return kind, flops, rate, passes


def _kind(opcodes: set[str]) -> str:
    """What a kernel without products is."""
    if opcodes & {"reduce", "reduce-window", "sort"}:
        return "reduction"
    return "copy" if opcodes <= MOVES | FREE | WRAPPERS else "elementwise"


def parts(module: Module, computation: Computation, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
    """The instruction and all that it fuses, each with the computation it is in."""
    yield computation, instruction
    if instruction.opcode in WRAPPERS:
        for name in instruction.called:
            inside = module.computations[name]
            for part in inside:
                yield from parts(module, inside, part)


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a matrix product or convolution by its shapes; 0 for anything else."""
    if instruction.opcode == "dot":
        lhs = computation.operands_of(instruction)[0].shape
        return 2.0 * instruction.shape.elements * math.prod(lhs.dims[d] for d in instruction.numbers("lhs_contracting_dims"))
    if instruction.opcode == "ragged-dot" or instruction.target.endswith("groupedMatmul"):
        return 2.0 * computation.operands_of(instruction)[0].shape.elements * instruction.shape.dims[-1]  # every row meets one group's matrix
    if instruction.target.startswith("__cublas$"):
        config = instruction.backend_config["gemm_backend_config"]["dot_dimension_numbers"]
        lhs = computation.operands_of(instruction)[0].shape
        return 2.0 * instruction.shape.elements * math.prod(lhs.dims[int(d)] for d in config["lhs_contracting_dimensions"])
    if instruction.opcode == "convolution" or instruction.target.startswith("__cudnn$conv"):
        labels = instruction.attribute("dim_labels")
        assert labels
        filters = computation.operands_of(instruction)[1].shape
        return 2.0 * instruction.shape.elements * filters.elements / filters.dims[labels.split("_")[1].split("->")[0].index("o")]
    return 0.0


def _passes(product: Instruction) -> float:
    """How many passes of the tensor cores a product's precision asks for."""
    algorithm = product.attribute("algorithm") or ""
    for times in (3, 6, 9):
        if algorithm.endswith(f"_x{times}"):
            return float(times)
    return HIGHEST_PRECISION if "highest" in (product.attribute("operand_precision") or "") else 1.0


def attention_flops(computation: Computation, call: Instruction) -> float:
    """FLOPs of cuDNN's fused attention: 2 products forward, 5 backward (scores again, and the gradients of q, k, v and the weights)."""
    width_k, width_v = (computation.operands_of(call)[i].shape.dims[-1] for i in (0, 2))
    config = call.backend_config["cudnn_fmha_backend_config"]
    batch, heads, queries, keys = (int(n) for n in config["intermediate_tensor_shape"]["dimensions"])
    window = int(config.get("sliding_window_length", 0))
    pairs = batch * heads * seen(queries, keys, "CAUSAL" in config["mask_type"], window or None)
    return 2.0 * pairs * (width_k + width_v if "Backward" not in call.target else 3 * width_k + 2 * width_v)


def seen(queries: int, keys: int, causal: bool, window: int | None) -> int:
    """How many pairs of query and key a mask lets through; positions begin together, a window counts the query itself.

    >>> seen(3, 3, True, None), seen(3, 3, True, 2), seen(3, 4, False, None), seen(2, 4, True, None)
    (6, 5, 12, 3)
    """
    if not causal:
        return queries * keys
    window = min(window or queries, queries)
    full = window * (window + 1) // 2 + (queries - window) * window
    beyond = max(0, queries - keys)  # queries after the last key
    return full - sum(min(window, past) for past in range(1, beyond + 1))


RATES = {"bf16": "bfloat16", "f16": "bfloat16", "f32": "float32", "f64": "float64"}


def rate_name(dtype: str) -> str:
    """The peak that products of an HLO type run at."""
    return RATES.get(dtype, "float8" if dtype.startswith("f8") else "bfloat16")


def dtype_before_widening(module: Module, computation: Computation, instruction: Instruction) -> str:
    """The dtype that a value had before the compiler for CPUs, which computes in float32, widened it."""
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
    """What a kernel reads: its operands, or the slices of them that it takes. What is updated in place is not read."""
    taken = computation.operands_of(instruction)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return instruction.bytes
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return sum(operand.bytes for operand in taken[1:])
    if instruction.opcode not in WRAPPERS:
        return sum(operand.bytes for operand in taken)
    fused = module.computations[instruction.called[0]]
    return sum(min(float(operand.bytes), _used(fused, fused.parameters[i], operand)) for i, operand in enumerate(taken))


def _used(fused: Computation, value: Instruction, operand: Instruction) -> float:
    """Bytes of `operand` that a fusion touches through `value`, a parameter or its elements passed on."""
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
            total += _used(fused, user, operand) if fused.users[user.name] else user.shape.elements * item
        else:
            return operand.bytes
    return total if fused.users[value.name] else (operand.bytes if value.root else 0.0)


def written_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """What a kernel writes: its results, or the slice that it updates in place."""
    if instruction.opcode in WRAPPERS:
        fused = module.computations[instruction.called[0]]
        roots = fused.operands_of(fused.root) if fused.root.opcode == "tuple" else [fused.root]
        return sum(_updated(fused, root) for root in roots)
    return _updated(computation, instruction)


def _updated(computation: Computation, result: Instruction) -> float:
    """Bytes of `result` that are new."""
    source = result
    while source.opcode in SAME_ELEMENTS and source.operands:
        source = computation.operands_of(source)[0]
    if source.opcode == "dynamic-update-slice":
        return computation.operands_of(source)[1].shape.elements * item_bytes(result.shape.dtype)
    if source.opcode == "scatter":
        return computation.operands_of(source)[-1].shape.elements * item_bytes(result.shape.dtype)
    return result.bytes
