"""The compiler options of a step on CPUs."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp

import llm_jax
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


WITHOUT_OPTIONS = {
    "generate/decode_step.py": "decodes with XLA's own choice where that is right: see `with_options`",
    "huggingface/transfer.py": "moves parts of arrays",
    "inspect/checkpoint_diff.py": "sums over weights",
    "inspect/logit_lens.py": "sums over logits",
    "processes/probe.py": "no model",
    "scaling/fit/": "no model",
    "scaling/vmapped_runs.py": "a step with the options that it is given; stacks and takes apart arrays",
    "train/peak_flops.py": "no model",
    "train/state.py": "`TrainModel.jit`, which gives the options",
}
"""Files that call `jax.jit` themselves, and why."""


def test_whatever_computes_with_weights_is_compiled_with_the_options():
    """All but the files above compile with `TrainModel.jit`, also what only makes or merges weights."""
    package = Path(llm_jax.__file__).parent
    raw = re.compile(r"(?<!`)\b(?:jax|nnx)\.(?:jit|pmap)\b(?!`)(?!\(\.\.\.)")
    found = {
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if raw.search(path.read_text())
    }
    assert {name for name in found if not name.startswith(tuple(WITHOUT_OPTIONS))} == set()
    assert {name for name in WITHOUT_OPTIONS if not any(path.startswith(name) for path in found)} == set()
