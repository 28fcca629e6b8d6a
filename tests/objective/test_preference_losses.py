"""Losses of preferences equal TRL's: of any log-probabilities, with their gradients, and of whole models.

tools/make_preference_fixtures.py makes the cases.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.data.answer_rows import MISMATCHED
from llm_jax.data.rows import empty_row, place_document
from llm_jax.objective.cpo import CPO
from llm_jax.objective.cpo import preference_loss as cpo_loss
from llm_jax.objective.dpo import DPO, preference_loss
from llm_jax.objective.kto import KTO, kto_loss
from llm_jax.objective.logprobs import Hidden
from llm_jax.objective.orpo import ORPO, odds_ratio_penalty
from llm_jax.objective.preference import AnswerObjective
from llm_jax.pretrained.model import open_model
from tests.objective.given_logprobs import with_logprobs

CASES = json.loads((Path(__file__).parent / "preference_cases.json").read_text())
RANDOM = CASES["random"]
POLICY, REFERENCE, MASK = (jnp.array(RANDOM[name], jnp.float32) for name in ("policy", "reference", "mask"))
LABEL = jnp.array(RANDOM["label"])
OBJECTIVES = {"dpo": DPO, "kto": KTO, "orpo": ORPO, "cpo": CPO}


def pure_loss(name: str, case: dict[str, Any], policy_BT: jax.Array) -> jax.Array:
    """The loss of a case of `RANDOM`."""
    config = case["config"]
    if name == "dpo":
        return preference_loss(DPO(**config), policy_BT, REFERENCE, MASK)
    if name == "kto":
        return kto_loss(KTO(**config), policy_BT, REFERENCE, MASK, LABEL, case["kl"])
    if name == "orpo":
        return odds_ratio_penalty(ORPO(**config), policy_BT, MASK)
    return cpo_loss(CPO(**config), policy_BT, MASK)


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo", "cpo"])
def test_losses_and_gradients_of_any_log_probabilities_are_trls(name):
    cases = RANDOM[name]
    programs = [jax.value_and_grad(functools.partial(pure_loss, name, case)) for case in cases]
    found = jax.jit(lambda x: [program(x) for program in programs])(POLICY)
    for case, (loss, gradient) in zip(cases, found, strict=True):
        expected = np.array(case["gradient"])
        assert float(loss) == pytest.approx(case["loss"], rel=1e-6), case["config"]
        np.testing.assert_allclose(
            gradient, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max(), err_msg=str(case["config"])
        )


def test_what_is_not_trained_may_be_anything():
    inside = MASK > 0
    for name in ("dpo", "kto", "orpo", "cpo"):
        case = RANDOM[name][0]
        loss, gradient = jax.value_and_grad(
            lambda x, name=name, case=case: pure_loss(name, case, jnp.where(inside, x, -jnp.inf))
        )(POLICY)
        assert float(loss) == pytest.approx(case["loss"], rel=1e-6)
        assert np.isfinite(gradient).all()


def test_conservative_dpo_is_the_mean_over_the_labels():
    """-(1 - e) log sigmoid(x) - e log sigmoid(-x), by NumPy in float64: TRL has no label smoothing here."""
    policy, reference, mask = (np.array(RANDOM[name], np.float64) for name in ("policy", "reference", "mask"))
    gains = ((policy - reference) * mask).sum(1)
    x = 0.3 * (gains[:3] - gains[3:])
    expected = (0.9 * np.log1p(np.exp(-x)) + 0.1 * np.log1p(np.exp(x))).mean()
    found = preference_loss(DPO(beta=0.3, label_smoothing=0.1), POLICY, REFERENCE, MASK)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_a_policy_that_is_its_reference_has_a_loss_of_log_2():
    assert float(preference_loss(DPO(), POLICY, POLICY, MASK)) == pytest.approx(np.log(2), abs=1e-7)
    assert float(kto_loss(KTO(), POLICY, POLICY, MASK, LABEL, 0.0)) == 0.5


def packed_batch(kind: str) -> dict[str, np.ndarray]:
    """The answers of `CASES["whole"]` in rows that they share: "pairs", or "labelled" ones beside mismatched ones."""
    of = CASES["whole"]
    answers, prompts = of["chosen"] + of["rejected"], of["prompts"] * 2
    order = [(0, 3, 1, 4), (2, 5)]
    batch = rows_of(answers, prompts, order)
    if kind == "pairs":
        return batch
    mismatched = rows_of(of["mismatched"], prompts, order)
    numbers = [np.array([0, *(of["label"][i] for i in some)], np.float32) for some in order]
    batch["labels"] = np.stack([labels[row] for labels, row in zip(numbers, batch["segments"], strict=True)])
    return {**batch, **{MISMATCHED + name: value for name, value in mismatched.items()}}


def rows_of(
    answers: list[list[int]], prompts: list[int], order: list[tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """A batch whose rows hold the answers with these numbers; there is room for four in each."""
    rows = []
    for some in order:
        row, at = empty_row(128), 0
        for segment, i in enumerate(some, 1):
            tokens = np.array(answers[i])
            at += place_document(row, at, segment, tokens, np.arange(len(tokens)) >= prompts[i])
        segments = row["segments"]
        row["continues"] = np.append((segments[1:] == segments[:-1]) & (segments[1:] > 0), 0).astype(
            np.float32
        )
        rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_losses_and_gradient_norms_of_a_model_are_trls():
    """A tiny Llama and a Mistral as its reference, read from their folders; answers that share rows."""
    folder = Path(__file__).parent.parent / "huggingface" / "fixtures"
    policy, reference = (
        open_model(folder / name, dtype="float32", tokenizer=False) for name in ("llama", "mistral")
    )

    def losses(parameters, frozen_parameters, batch, objectives):
        frozen = {"reference": reference.program.model(frozen_parameters)}
        model = policy.program.model(parameters)
        logprobs = lambda p: AnswerObjective().policy_logp(policy.program.model(p), batch)[1]  # noqa: E731
        logp_BT, back = jax.vjp(logprobs, parameters)

        def of(objective):
            def loss(x_BT):
                totals = jax.lax.stop_gradient(objective.totals(model, frozen, batch))
                given = with_logprobs(objective, Hidden(x_BT, None), x_BT)
                given_frozen = dataclasses.replace(objective).reference_logp(frozen, batch)
                whole = {
                    **batch,
                    **totals,
                    **({} if given_frozen is None else {"reference_logp": given_frozen}),
                }
                found = given.compute_loss(model, {}, whole)
                return found.total / found.weight

            return jax.value_and_grad(loss)(logp_BT)

        values, gradients_BT = zip(*map(of, objectives), strict=True)
        norms = jax.lax.map(
            lambda g_BT: jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(back(g_BT)))),
            jnp.stack(gradients_BT),
        )
        return values, norms

    with jax.set_mesh(policy.program.place.mesh):
        for kind in ("pairs", "labelled"):
            cases = [
                case for case in CASES["whole"]["cases"] if (case["name"] == "kto") == (kind == "labelled")
            ]
            objectives = [OBJECTIVES[case["name"]](**{"cache": False} | case["config"]) if case["name"] in ("dpo", "kto")
                          else OBJECTIVES[case["name"]](**case["config"]) for case in cases]  # fmt: skip
            program = jax.jit(functools.partial(losses, objectives=objectives))
            found = program(policy.parameters, reference.parameters, packed_batch(kind))
            for case, value, norm in zip(cases, *found, strict=True):
                assert float(value) == pytest.approx(case["loss"], rel=1e-5), case
                assert float(norm) == pytest.approx(case["gradient_norm"], rel=1e-4), case


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (DPO(label_smoothing=0.5), "objective.label_smoothing=0.5: must be 0 or more, and below 0.5"),
        (DPO(loss="robust", label_smoothing=0.5), "objective.label_smoothing=0.5: must be"),
        (DPO(loss="exo_pair"), "objective.label_smoothing=0.0: exo_pair takes its logarithm"),
        (DPO(loss="ipo", label_smoothing=0.1), "objective.label_smoothing=0.1: loss=ipo has none"),
        (DPO(loss="apo_zero", divergence="forward_kl"), "objective.divergence=forward_kl: loss=apo_zero"),
        (DPO(beta=0.0), "objective.beta=0.0: must be above 0"),
        (DPO(sft=-1.0), "objective.sft=-1.0: must be 0"),
        (DPO(alpha=0.3), "objective.alpha=0.3: has an effect only with objective.divergence=alpha"),
        (KTO(undesirable_weight=0.0), "objective.undesirable_weight=0.0: must be above 0"),
        (ORPO(beta=-1.0), "objective.beta=-1.0: must be above 0"),
        (CPO(gamma=3.0), "objective.gamma=3.0: has an effect only with objective.loss=simpo"),
        (CPO(loss="hinge", label_smoothing=0.1), "objective.label_smoothing=0.1: loss=hinge has none"),
    ],
)
def test_a_value_that_has_no_meaning_is_refused(objective, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        objective.check()
