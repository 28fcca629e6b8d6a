"""FLOPs and bytes of kernels equal arithmetic."""

# lines as XLA prints them

from __future__ import annotations

import json

import pytest

from llm_jax.layout.hlo import Module
from llm_jax.model.accounting import keys_per_query
from llm_jax.plan.cost import KernelCost, read_kernel, visible_pairs
from tests.plan.hardware import PERFECT, ROUND, program


def kernel(module: Module, name: str = "k") -> KernelCost:
    return read_kernel(module, module.entry, module.entry.instructions[name])


def test_a_product_costs_two_flops_a_multiply_add_and_its_operands_and_result():
    module = program(
        """%a = bf16[8,64,128] parameter(0)
        %b = bf16[8,128,32] parameter(1)
        ROOT %k = f32[8,64,32] dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}"""
    )
    k = kernel(module)
    assert (k.kind, k.rate) == ("matmul", "bfloat16")
    assert k.flops == 2 * 8 * 64 * 128 * 32
    assert k.bytes == 2 * 8 * 64 * 128 + 2 * 8 * 128 * 32 + 4 * 8 * 64 * 32


@pytest.mark.parametrize(
    ("attributes", "rate", "passes"),
    [
        ("", "float32", 1),
        ("operand_precision={highest,highest}", "float32", 8),
        ("algorithm=dot_bf16_bf16_f32_x3", "float32", 3),
    ],
)
def test_precision_costs_passes(attributes, rate, passes):
    module = program(
        f"""%a = f32[64,128] parameter(0)
        %b = f32[128,32] parameter(1)
        ROOT %k = f32[64,32] dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, {attributes}"""
    )
    k = kernel(module)
    assert (k.rate, k.passes, k.flops) == (rate, passes, 2 * 64 * 128 * 32)


def test_a_product_inside_a_fusion_is_found_with_its_own_dtype():
    module = program(
        """%a = f32[64,128] parameter(0)
        %b = bf16[128,32] parameter(1)
        ROOT %k = f32[64,32] fusion(%a, %b), kind=kCustom, calls=%gemm""",
        """gemm:
        %p.0 = f32[64,128] parameter(0)
        %p.1 = bf16[128,32] parameter(1)
        %c = bf16[64,128] convert(%p.0)
        ROOT %dot = f32[64,32] dot(%c, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}""",
    )
    assert (kernel(module).flops, kernel(module).rate) == (2 * 64 * 128 * 32, "bfloat16")
    assert kernel(module).bytes == 4 * 64 * 128 + 2 * 128 * 32 + 4 * 64 * 32


def test_cublas_ragged_and_convolution_are_counted():
    config = json.dumps(
        {
            "gemm_backend_config": {
                "dot_dimension_numbers": {
                    "lhs_contracting_dimensions": ["0"],
                    "rhs_contracting_dimensions": ["0"],
                }
            }
        }
    )
    module = program(
        f"""%a = bf16[128,64] parameter(0)
        %b = bf16[128,32] parameter(1)
        %experts = bf16[8,64,32] parameter(2)
        %sizes = s32[8] parameter(3)
        %image = f32[2,16,16,3] parameter(4)
        %filter = f32[5,5,3,7] parameter(5)
        %k = (bf16[64,32], s8[4096]) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config={config}
        %ragged = bf16[128,32] ragged-dot(%a, %experts, %sizes), lhs_contracting_dims={{1}}, rhs_contracting_dims={{1}}, lhs_ragged_dims={{0}}, rhs_group_dims={{0}}
        ROOT %conv = f32[2,12,12,7] convolution(%image, %filter), window={{size=5x5}}, dim_labels=b01f_01io->b01f"""
    )
    assert kernel(module).flops == 2 * 64 * 32 * 128
    assert kernel(module, "ragged").flops == 2 * 128 * 64 * 32  # a row meets one expert
    assert kernel(module, "conv").flops == 2 * (2 * 12 * 12 * 7) * (5 * 5 * 3)
    assert kernel(module, "conv").kind == "convolution"


B, H, G, T, K = 3, 8, 2, 64, 16


def attention(backward: bool, mask: str, window: int) -> KernelCost:
    config = {
        "cudnn_fmha_backend_config": {
            "intermediate_tensor_shape": {"dimensions": [str(n) for n in (B, H, T, T)]},
            "mask_type": mask,
            "sliding_window_length": window,
        }
    }
    target = "__cudnn$fmhaSoftmax" + "Backward" * backward
    return kernel(
        program(
            f"""%q = bf16[{B},{T},{H},{K}] parameter(0)
            %k.1 = bf16[{B},{T},{G},{K}] parameter(1)
            %v = bf16[{B},{T},{G},{K}] parameter(2)
            ROOT %k = (bf16[{B},{H},{T},{K}], f32[{B},{H},{T}], u8[0]) custom-call(%q, %k.1, %v), custom_call_target="{target}", backend_config={json.dumps(config)}"""
        )
    )


@pytest.mark.parametrize(
    ("mask", "window", "keys"),
    [("CAUSAL", 0, (T + 1) / 2), ("PADDING_CAUSAL", 10, keys_per_query(T, 10)), ("NO_MASK", 0, T)],
)
def test_attention_counts_the_keys_that_the_mask_lets_a_query_see(mask, window, keys):
    assert attention(False, mask, window).flops == pytest.approx(4 * B * H * T * keys * K)
    assert attention(True, mask, window).flops == pytest.approx(
        10 * B * H * T * keys * K
    )  # five products for two
    assert (attention(False, mask, window).kind, attention(True, mask, window).kind) == (
        "attention forward",
        "attention backward",
    )


@pytest.mark.parametrize(
    ("queries", "keys", "window"), [(5, 5, None), (5, 5, 2), (7, 4, None), (7, 4, 3), (4, 7, None), (4, 7, 9)]
)
def test_visible_pairs_are_those_of_the_mask(queries, keys, window):
    mask = [
        (i, j) for i in range(queries) for j in range(keys) if j <= i and (window is None or i - j < window)
    ]
    assert visible_pairs(queries, keys, True, window) == len(mask)


def test_a_slice_of_a_stack_of_layers_is_read_and_written_alone():
    module = program(
        """%stack = f32[10,8,16] parameter(0)
        %i = s32[] parameter(1)
        %update = bf16[8,16] parameter(2)
        %read = bf16[8,16] fusion(%stack, %i), kind=kLoop, calls=%one_layer
        ROOT %write = f32[10,8,16] fusion(%stack, %i, %update), kind=kLoop, calls=%into_the_stack""",
        """one_layer:
        %s = f32[10,8,16] parameter(0)
        %n = s32[] parameter(1)
        %slice = f32[1,8,16] dynamic-slice(%s, %n, %n, %n), dynamic_slice_sizes={1,8,16}
        %flat = f32[8,16] bitcast(%slice)
        ROOT %half = bf16[8,16] convert(%flat)

        into_the_stack:
        %s.1 = f32[10,8,16] parameter(0)
        %n.1 = s32[] parameter(1)
        %u = bf16[8,16] parameter(2)
        %wide = f32[8,16] convert(%u)
        %one = f32[1,8,16] bitcast(%wide)
        ROOT %put = f32[10,8,16] dynamic-update-slice(%s.1, %one, %n.1, %n.1, %n.1)""",
    )
    assert (
        kernel(module, "read").bytes == 4 * 128 + 4 + 2 * 128
    )  # a slice in float32, the index, the slice in bfloat16
    assert kernel(module, "write").bytes == 4 + 2 * 128 + 4 * 128  # nothing of the stack
    assert kernel(module, "read").kind == "copy"


def test_seconds_are_those_of_flops_or_of_bytes_whichever_are_more():
    assert (
        KernelCost("k", "matmul", "", flops=2e15, bytes=1e12, rate="bfloat16").seconds(ROUND, PERFECT) == 2.0
    )
    assert (
        KernelCost("k", "matmul", "", flops=2e15, bytes=3e12, rate="bfloat16").seconds(ROUND, PERFECT) == 3.0
    )
    assert KernelCost("k", "matmul", "", flops=2e15, bytes=0, rate="float32").seconds(ROUND, PERFECT) == 4.0
