"""What the tests read of a compiled step doesn't depend on the machine code that tests/no_ptxas.py leaves
out."""

from __future__ import annotations

import jax
import jax._src.lib as jax_lib
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from llm_jax.layout.gpu_compile import CompiledStep, compile_for, topology_mesh
from tests.no_ptxas import REAL


def compiled() -> CompiledStep:
    """A scan of products whose weights are gathered over two H100s, and its gradients."""
    mesh = topology_mesh("h100", {"data": 2})

    def abstract(shape: tuple[int, ...], *spec: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, P(*spec)))

    def loss(weights, x):
        def layer(x, w):
            return jnp.tanh(x @ jax.reshard(w, P(None, None))), None

        return jax.lax.scan(layer, x, weights)[0].astype(jnp.float32).sum()

    step = jax.jit(jax.value_and_grad(loss))
    return compile_for(mesh, step, (abstract((4, 256, 256), None, "data"), abstract((64, 256), "data")))


@pytest.mark.gpu_compile
def test_text_and_memory_are_those_that_are_left_with_machine_code(monkeypatch):
    steps = []
    for folder in (jax_lib.cuda_path, REAL):
        monkeypatch.setattr(jax_lib, "cuda_path", folder)
        steps.append(compiled())  # on one line, since the text has line numbers
    without, real = steps
    assert without.text == real.text
    assert without.memory_bytes() == real.memory_bytes()
