"""The feed-forward block: gated (SwiGLU, GeGLU) or plain (GELU)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from llm_jax.model.config import ModelConfig
from llm_jax.model.dims import Placement
from llm_jax.model.parametrization import residual_std
from llm_jax.model.weights import add_bias, project, weight

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
}


class FeedForward(nnx.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        layers: int | None,
        place: Placement,
        mlp: int | None = None,
    ):
        """mlp: the hidden width; None: `config.mlp`."""
        self.config, self.place = config, place
        D, F = config.embed, mlp or config.mlp
        assert F is not None
        if config.gated:
            self.gate = weight(rngs, config, (D, F), ("embed", "mlp"), config.init_std, layers)
        self.up = weight(rngs, config, (D, F), ("embed", "mlp"), config.init_std, layers)
        self.down = weight(rngs, config, (F, D), ("mlp", "embed"), residual_std(config), layers)
        if config.bias_mlp:
            if config.gated:
                self.gate_bias = weight(rngs, config, (F,), ("mlp",), 0, layers)
            self.up_bias = weight(rngs, config, (F,), ("mlp",), 0, layers)
            self.down_bias = weight(rngs, config, (D,), ("embed",), 0, layers)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """x_BTD in the compute placement → y_BTD in the residual placement."""
        config, place = self.config, self.place
        act = ACTIVATIONS[config.activation]
        gate_BTF, up_BTF = self.projections(x_BTD)
        if config.bias_mlp:
            up_BTF = add_bias(up_BTF, self.up_bias, config, place)
        up_BTF = checkpoint_name(up_BTF, "mlp_up")
        if gate_BTF is not None:
            if config.bias_mlp:
                gate_BTF = add_bias(gate_BTF, self.gate_bias, config, place)
            hidden_BTF = act(checkpoint_name(gate_BTF, "mlp_gate")) * up_BTF
        else:
            hidden_BTF = act(up_BTF)
        y_BTD = project(
            "BTF,FD->BTD",
            hidden_BTF,
            self.down,
            config,
            place,
            place.spec(("batch", "sequence", "embed"), "residual"),
        )
        if config.bias_mlp:
            y_BTD = add_bias(y_BTD, self.down_bias, config, place)
        return y_BTD

    def projections(self, x_BTD: jax.Array) -> tuple[jax.Array | None, jax.Array]:
        """(gate_BTF or None, up_BTF): the two products, before biases."""
        up_BTF = project("BTD,DF->BTF", x_BTD, self.up, self.config, self.place)
        return (
            project("BTD,DF->BTF", x_BTD, self.gate, self.config, self.place) if self.config.gated else None
        ), up_BTF
