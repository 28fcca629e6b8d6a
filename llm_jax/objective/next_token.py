"""Next-token prediction: the mean cross-entropy of every token given the tokens before it in its document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.errors import require
from llm_jax.core.format import format_loss
from llm_jax.core.renamed import raise_renamed
from llm_jax.model.transformer import Transformer
from llm_jax.objective.logprobs import cross_entropy, hidden_states
from llm_jax.objective.protocol import Batch, Loss, Metric, Objective


@dataclass(frozen=True)
class NextToken(Objective):
    """Cross-entropy of the next token."""

    name: str = "next_token"
    """Which objective; its file is objective/NAME.py."""
    z_loss: float = 0.0
    """Coefficient of log(Z)^2, which keeps logits from drifting (1e-4 in PaLM, Chowdhery et al. 2022); 0:
    off.
    """
    chunk: int = 1024
    """Positions whose logits exist at once on a device."""

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(0 <= self.z_loss < math.inf, "objective.z_loss", self.z_loss, "0 (off) or more, e.g. 1e-4")
        require(self.chunk >= 1, "objective.chunk", self.chunk, "at least 1 position")

    def loss(self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch) -> Loss:
        """The weighted sum of cross-entropies (and z-loss), over batches of tokens, targets, weights,
        segments and positions, each [B, T].
        """
        hidden = hidden_states(policy, batch)
        total, entropy = cross_entropy(
            policy, hidden, batch["targets"], batch["weights"], z_loss=self.z_loss, chunk=self.chunk
        )
        return Loss(total, jnp.sum(batch["weights"]), {"cross_entropy": Metric(entropy)}, hidden.routing)

    def evaluate(
        self, policy: Transformer, frozen: Mapping[str, Transformer], batch: Batch, token_bytes: jax.Array
    ) -> Mapping[str, jax.Array]:
        """Sums of the cross-entropy, the weights, and the bytes of the targets."""
        targets, weights = batch["targets"], batch["weights"]
        _, entropy = cross_entropy(policy, hidden_states(policy, batch), targets, weights)
        return {"cross_entropy": entropy, **self.sizes(batch, token_bytes)}

    def sizes(self, batch: Batch, token_bytes: jax.Array) -> dict[str, jax.Array]:
        """The sum of the weights, and the weighted bytes of the targets: what `scores` divides by."""
        targets, weights = batch["targets"], batch["weights"]
        bytes_BT = token_bytes.at[targets].get(out_sharding=jax.typeof(targets).sharding.spec)
        return {"weight": jnp.sum(weights), "bytes": jnp.sum(bytes_BT * weights)}

    def scores(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """eval_loss in nats a token, eval_bits_per_byte, and eval_tokens, over how many tokens."""
        return {
            "eval_loss": sums["cross_entropy"] / sums["weight"],
            "eval_bits_per_byte": sums["cross_entropy"] / np.log(2) / sums["bytes"],
            "eval_tokens": sums["weight"],
        }

    def line(self, scores: Mapping[str, float]) -> str:
        """The scores of an evaluation as one line of the log."""
        loss, bits = (format_loss(scores.get(name)) for name in ("eval_loss", "eval_bits_per_byte"))
        return f"held-out loss {loss}, {bits} bits per byte"


def __getattr__(name: str) -> Any:
    if name == "ObjectiveConfig":
        raise_renamed(f"{__name__}.ObjectiveConfig", f"{__name__}.NextToken")
    if name == "register":
        raise_renamed(f"{__name__}.register", "a subclass of llm_jax.objective.protocol.Objective")
    raise AttributeError(f"{__name__} has no {name}")
