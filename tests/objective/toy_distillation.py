"""A distillation objective in one file: the policy learns the next-token distribution of a teacher of another
shape.

python -m llm_jax.launch experiment=tests/objective/toy_distillation.py objective.teacher=RUN
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llm_jax.objective.next_token import NextToken
from llm_jax.objective.protocol import Loss, Metric


@dataclass(frozen=True)
class ToyDistillation(NextToken):
    name: str = "toy_distillation"
    teacher: str = ""

    def frozen(self):
        return {"teacher": self.teacher}

    def loss(self, policy, frozen, batch):
        """The weighted sum over tokens of KL(teacher || policy), Hinton et al. 2015.

        Whole logits: this is a toy.
        """

        def log_p(model):
            return jax.nn.log_softmax(
                model(batch["tokens"], batch["positions"], batch["segments"]).astype(jnp.float32)
            )

        teacher_BTV = jax.lax.stop_gradient(log_p(frozen["teacher"]))
        divergence_BT = jnp.sum(jnp.exp(teacher_BTV) * (teacher_BTV - log_p(policy)), -1)
        total, weight = jnp.sum(divergence_BT * batch["weights"]), jnp.sum(batch["weights"])
        return Loss(total, weight, {"divergence": Metric(total)})


def experiment():
    from tests.objective.tiny import tiny

    return dataclasses.replace(tiny(), objective=ToyDistillation())
