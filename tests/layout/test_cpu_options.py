"""The compiler options of a step on CPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llm_jax.layout import cpu_options


def test_batched_products_are_not_left_to_the_library_that_uses_one_core():
    x = jnp.ones((8, 6, 64, 64))
    product = jax.jit(
        lambda x: jnp.einsum("BHTK,BHSK->BHTS", x, x), compiler_options=cpu_options.compiler_options({})
    )
    assert "ynn" not in product.lower(x).compile().as_text()


def test_options_that_the_user_sets_are_left_alone():
    assert cpu_options.compiler_options({"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type="}) == {}
    assert (
        cpu_options.compiler_options({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"})
        == cpu_options.OPTIONS
    )
