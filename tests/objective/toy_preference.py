"""A preference objective in one file: the row as it is should be likelier than with its tokens in another
order (DPO, Rafailov 2023).

python -m llm_jax.launch experiment=tests/objective/toy_preference.py
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.objective.logprobs import hidden_states, join_parts, split_parts, token_logprobs
from llm_jax.objective.protocol import ArraySpec, Loss, Metric, Objective, Score

PAIRS = ("batch", 2, "sequence")


@dataclass(frozen=True)
class Pairs:
    """Chosen and rejected sequences from the rows of a corpus: a row, and the same row with its tokens
    reversed.
    """

    corpus: object

    def pair(self, batch, first=0):
        swapped = {name: batch[name][:, ::-1].copy() for name in ("tokens", "targets")}
        pairs = {name: np.stack([batch[name], swapped.get(name, batch[name])], 1) for name in batch}
        margin = np.float32(0.1) * (first + np.arange(len(batch["tokens"]), dtype=np.float32)) / 2
        return {**pairs, "margin": margin, "pair_weights": (batch["weights"].sum(1) > 0).astype(np.float32)}

    def batch(self, step, rows=None):
        return self.pair(self.corpus.batch(step, rows), rows.start if rows else 0)

    def held_out_batches(self, batch_size, limit=None):
        return map(self.pair, self.corpus.held_out_batches(batch_size, limit))


@dataclass(frozen=True)
class ToyPreference(Objective):
    name: str = "toy_preference"
    beta: float = 0.5

    def arrays(self):
        ints, floats = ArraySpec(PAIRS, "int32"), ArraySpec(PAIRS, "float32")
        label = ArraySpec(("batch",), "float32")
        return {
            "tokens": ints, "targets": ints, "weights": floats, "segments": ints, "positions": ints,
            "margin": label, "pair_weights": label,
        }  # fmt: skip

    def frozen(self):
        return {"reference": ""}

    def examples(self, corpus, settings):
        return Pairs(corpus)

    def tokens_per_step(self, batch_size, sequence_length):
        return 2 * batch_size * sequence_length

    def losses(self, policy, frozen, batch):
        """Of each pair, [B]: -log sigmoid(beta (how much more the policy prefers the chosen one than the
        reference does) - margin).
        """
        joined = join_parts(batch)

        def sums(model):
            logp_NT = token_logprobs(model, hidden_states(model, joined), joined["targets"], chunk=16)
            chosen_rejected = split_parts(jnp.sum(logp_NT * joined["weights"], -1), 2)
            return chosen_rejected[:, 0] - chosen_rejected[:, 1]

        preference = self.beta * (sums(policy) - jax.lax.stop_gradient(sums(frozen["reference"])))
        return -jax.nn.log_sigmoid(preference - batch["margin"]), preference

    def loss(self, policy, frozen, batch):
        losses, preference = self.losses(policy, frozen, batch)
        weights = batch["pair_weights"]
        right = Metric(jnp.sum(preference > 0), jnp.asarray(preference.size, jnp.float32))
        return Loss(jnp.sum(losses * weights), jnp.sum(weights), {"accuracy": right})

    def evaluate(self, policy, frozen, batch, token_bytes):
        losses, preference = self.losses(policy, frozen, batch)
        weights = batch["pair_weights"]
        return {
            "loss": jnp.sum(losses * weights),
            "right": jnp.sum((preference > 0) * weights),
            "pairs": jnp.sum(weights),
        }

    def scores(self, sums):
        return {"eval_loss": sums["loss"] / sums["pairs"], "eval_accuracy": sums["right"] / sums["pairs"]}

    @property
    def score(self):
        return Score("eval_accuracy", lower_is_better=False)


def experiment():
    from tests.objective.tiny import tiny

    return dataclasses.replace(tiny(), objective=ToyPreference())
