"""Makes tests/objective/preference_cases.json: losses of preferences and their gradients, as TRL computes them.

  pip install -e '.[dev,reference]' && python -m tools.make_preference_fixtures

`random`: of every loss on the same random log-probabilities, float32, with the gradient of each. `whole`: of some losses
with a tiny Llama as the policy and a tiny Mistral as the reference (tests/huggingface/fixtures), with the norm of the
gradient of all weights.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.utils import add_fused_lm_head

TESTS = Path(__file__).parent.parent / "tests"
DPO: list[dict[str, Any]] = [
    *({"loss": loss} for loss in ("sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard")),
    *({"loss": loss} for loss in ("apo_zero", "apo_down", "sigmoid_norm")),
    *({"loss": loss, "label_smoothing": 0.1} for loss in ("robust", "exo_pair")),
    *(
        {"loss": loss, "divergence": divergence, "label_smoothing": 0.2 * (loss in ("robust", "exo_pair"))}
        for loss in ("sigmoid", "hinge", "ipo", "robust", "exo_pair", "sigmoid_norm")
        for divergence in ("forward_kl", "js_divergence")
    ),
    *({"loss": "sigmoid", "divergence": "alpha_divergence", "alpha": alpha} for alpha in (0.3, 1.0, 2.5)),
    {"loss": "sigmoid", "beta": 0.7, "sft": 0.5},
    {"loss": "hinge", "beta": 2.0},
]
KTO: list[dict[str, Any]] = [
    {"loss": "kto"},
    {"loss": "kto", "beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.7},
    {"loss": "kto", "negative_kl": True},
    {"loss": "apo_zero_unpaired", "beta": 0.4},
]
ORPO: list[dict[str, Any]] = [{}, {"beta": 0.5}]
CPO: list[dict[str, Any]] = [
    *({"loss": loss} for loss in ("sigmoid", "hinge", "ipo", "simpo")),
    {"loss": "sigmoid", "label_smoothing": 0.1, "beta": 0.5, "sft": 0.2},
    {"loss": "simpo", "gamma": 1.2, "beta": 2.0, "label_smoothing": 0.05, "sft": 1.0},
]
PAIRS, LENGTH = 3, 7


def trainer(**own: Any) -> SimpleNamespace:
    """What the trainers' functions read of `self`."""
    same = lambda x: x  # noqa: E731
    metrics: dict[str, Any] = {mode: defaultdict(list) for mode in ("train", "eval")}
    return SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
        is_encoder_decoder=False,
        precompute_ref_logps=True,
        **own,
    )


def outputs(log_probs: torch.Tensor) -> SimpleNamespace:
    """What a model with a fused head returns."""
    zero = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, entropy=zero, mean_logits=zero, is_top1=zero.bool())


def dpo_loss(case: dict[str, Any], model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of DPOTrainer. `sft` is its loss of that name, beside the other."""
    smoothing = case.get("label_smoothing", 0.0)
    kinds = [(case["loss"], 1.0)] + ([("sft", case["sft"])] if "sft" in case else [])
    if case["loss"] == "sigmoid" and smoothing:
        raise ValueError("TRL has no conservative DPO")
    own = trainer(
        beta=case.get("beta", 0.1),
        label_smoothing=smoothing,
        f_divergence_type=case.get("divergence", "reverse_kl"),
        f_alpha_divergence_coef=case.get("alpha", 0.5),
        loss_types=[name for name, _ in kinds],
        loss_weights=[weight for _, weight in kinds],
        ld_alpha=None,
        use_weighting=False,
    )
    return DPOTrainer._compute_loss(own, model, inputs, False)


def kto_loss(case: dict[str, Any], model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of KTOTrainer."""
    own = trainer(
        beta=case.get("beta", 0.1),
        loss_type=case["loss"],
        calculate_KL=case["loss"] == "kto",
        desirable_weight=case.get("desirable_weight", 1.0),
        undesirable_weight=case.get("undesirable_weight", 1.0),
    )
    own._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(own, model, batch)
    return KTOTrainer._compute_loss(own, model, inputs, False)


def cpo_trainer(case: dict[str, Any]) -> SimpleNamespace:
    """A CPOTrainer's settings."""
    loss = case["loss"]
    own = trainer(
        beta=case.get("beta", 0.1),
        alpha=0.0,
        loss_type=loss,
        simpo_gamma=case.get("gamma", 0.5),
        label_smoothing=case.get("label_smoothing", 0.0),
        cpo_alpha=case.get("sft", float(loss != "simpo")),
        pad_token_id=0,
    )
    own.concatenated_inputs, own.get_batch_logps = CPOTrainer.concatenated_inputs, CPOTrainer.get_batch_logps
    own.cpo_loss = lambda *sums: CPOTrainer.cpo_loss(own, *sums)
    own.concatenated_forward = lambda model, batch: CPOTrainer.concatenated_forward(own, model, batch)
    return own


def orpo_trainer(case: dict[str, Any]) -> SimpleNamespace:
    """An ORPOTrainer's settings."""
    own = trainer(beta=case.get("beta", 0.1), padding_value=0)
    own.concatenated_inputs, own.get_batch_logps = (
        ORPOTrainer.concatenated_inputs,
        ORPOTrainer.get_batch_logps,
    )
    own.odds_ratio_loss = lambda *sums: ORPOTrainer.odds_ratio_loss(own, *sums)
    own.concatenated_forward = lambda model, batch: ORPOTrainer.concatenated_forward(own, model, batch)
    return own


def random_cases() -> dict[str, Any]:
    """Every loss on random log-probabilities: {"policy", "reference", "mask", ...: arrays, "dpo": [...], ...}."""
    torch.manual_seed(0)
    B = 2 * PAIRS
    policy = -2.5 * torch.rand(B, LENGTH) ** 2 - 0.01
    reference = policy + 0.8 * torch.randn(B, LENGTH)
    reference = torch.minimum(reference, torch.tensor(-0.005))
    begins = torch.tensor([1, 0, 3, 1, 0, 3])[:, None]
    ends = torch.tensor([7, 5, 6, 4, 7, 7])[:, None]
    places = torch.arange(LENGTH)[None]
    mask = ((places >= begins) & (places < ends)).long()
    label = torch.tensor([1, 0, 1, 1, 0, 1])
    kl = 1.7
    found: dict[str, Any] = {
        "policy": policy.tolist(), "reference": reference.tolist(), "mask": mask.tolist(), "label": label.tolist(),
        "dpo": [], "kto": [], "orpo": [], "cpo": [],
    }  # fmt: skip
    whole_mask = torch.cat([torch.zeros(B, 1, dtype=torch.long), mask], 1)  # nothing predicts a first token
    sums = (reference * mask).sum(1)
    pairs = {
        "input_ids": torch.zeros(B, LENGTH + 1, dtype=torch.long),
        "attention_mask": torch.ones(B, LENGTH + 1, dtype=torch.long),
        "completion_mask": whole_mask,
        "ref_chosen_logps": sums[:PAIRS],
        "ref_rejected_logps": sums[PAIRS:],
    }
    for case in DPO:
        x = policy.clone().requires_grad_()
        loss = dpo_loss(case, lambda x=x, **_: outputs(x * mask), pairs)
        found["dpo"].append(result(case, loss, x))
    for case in KTO:
        x, own = policy.clone().requires_grad_(), {**case}
        own_kl = -kl if own.pop("negative_kl", False) else kl
        inputs = {
            **{name: value for name, value in pairs.items() if not name.startswith("ref_")},
            "label": label,
            "ref_logps": sums,
            "ref_KL_logps": torch.zeros(B),
            "KL_input_ids": torch.ones(B, 2, dtype=torch.long),
            "KL_attention_mask": torch.ones(B, 2, dtype=torch.long),
            "KL_completion_mask": torch.ones(B, 2, dtype=torch.long),
        }

        def model(x=x, own_kl=own_kl, **arguments: Any) -> SimpleNamespace:
            is_kl = arguments["input_ids"].shape[1] == 2
            return outputs(torch.full((B, 1), own_kl) if is_kl else x * mask)

        found["kto"].append({**result(own, kto_loss(own, model, inputs), x), "kl": own_kl})
    for case in ORPO:
        x = policy.clone().requires_grad_()
        chosen, rejected = ((x * mask).sum(1) / mask.sum(1)).chunk(2)
        losses = orpo_trainer(case).odds_ratio_loss(chosen, rejected)[0]
        found["orpo"].append(result(case, -losses.mean(), x))
    for case in CPO:
        x, trainer_ = policy.clone().requires_grad_(), cpo_trainer(case)
        summed, counts = (x * mask).sum(1), mask.sum(1)
        chosen, rejected = (summed / counts if case["loss"] in ("ipo", "simpo") else summed).chunk(2)
        nll = -summed[:PAIRS].sum() / counts[:PAIRS].sum()
        logits = torch.zeros(PAIRS, 1, 1)
        trainer_.concatenated_forward = lambda *_, parts=(chosen, rejected, logits, logits, nll): parts
        found["cpo"].append(result(case, CPOTrainer.get_batch_loss_metrics(trainer_, None, {})[0], x))
    return found


def result(case: dict[str, Any], loss: torch.Tensor, x: torch.Tensor) -> dict[str, Any]:
    """A case with its loss and gradient."""
    loss.backward()
    assert x.grad is not None
    return {"config": case, "loss": float(loss), "gradient": x.grad.tolist()}


def whole_cases() -> dict[str, Any]:
    """Losses and gradient norms with models: {"chosen", "rejected", "prompts": [lengths], ..., "cases": [...]}."""
    folder = TESTS / "huggingface" / "fixtures"
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
        for name in ("llama", "mistral")
    )
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        return torch.randint(4, 83, (count,), generator=generator).tolist()

    prompts = [draw(3), draw(6), draw(2)]
    chosen = [prompt + draw(n) for prompt, n in zip(prompts, (5, 2, 7), strict=True)]
    rejected = [prompt + draw(n) for prompt, n in zip(prompts, (3, 6, 4), strict=True)]
    label = [1, 0, 1, 1, 0, 1]
    answers = chosen + rejected
    lengths = [len(prompt) for prompt in prompts] * 2
    # TRL matches each prompt with the answer before its own.
    mismatched = [answers[i][: lengths[i]] + answers[i - 1][lengths[i - 1] :] for i in range(len(answers))]
    inputs = padded(answers, lengths)
    kl_inputs = {f"KL_{name}": value for name, value in padded(mismatched, lengths).items()}
    for model in (policy, reference):
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    with torch.no_grad():
        sums, kl_sums = (
            reference(
                input_ids=of["input_ids"],
                attention_mask=of["attention_mask"],
                labels=of["input_ids"].masked_fill(of["completion_mask"] == 0, -100),
                fused_lm_head=True,
            ).log_probs.sum(1)
            for of in (inputs, {name.removeprefix("KL_"): value for name, value in kl_inputs.items()})
        )
    cases = []
    for name, case in (
        *(("dpo", case) for case in ({"loss": "sigmoid"}, {"loss": "ipo"}, {"loss": "sigmoid", "sft": 0.5})),
        ("kto", {"loss": "kto"}),
        ("orpo", {}),
        ("cpo", {"loss": "sigmoid"}),
        ("cpo", {"loss": "simpo", "beta": 2.0}),
    ):
        policy.zero_grad()
        if name == "dpo":
            own = {**inputs, "ref_chosen_logps": sums[:PAIRS], "ref_rejected_logps": sums[PAIRS:]}
            loss = dpo_loss(case, policy, own)
        elif name == "kto":
            own = {
                **inputs,
                **kl_inputs,
                "label": torch.tensor(label),
                "ref_logps": sums,
                "ref_KL_logps": kl_sums,
            }
            loss = kto_loss(case, policy, own)
        else:
            Trainer, own_trainer = (
                (ORPOTrainer, orpo_trainer(case)) if name == "orpo" else (CPOTrainer, cpo_trainer(case))
            )
            loss = Trainer.get_batch_loss_metrics(own_trainer, policy, halves(chosen, rejected, lengths))[0]
        loss.backward()
        norm = torch.sqrt(
            sum(p.grad.double().square().sum() for p in policy.parameters() if p.grad is not None)
        )
        cases.append({"name": name, "config": case, "loss": float(loss), "gradient_norm": float(norm)})
    return {
        "prompts": lengths[:PAIRS], "chosen": chosen, "rejected": rejected, "label": label, "mismatched": mismatched,
        "cases": cases,
    }  # fmt: skip


def padded(rows: list[list[int]], prompts: list[int]) -> dict[str, torch.Tensor]:
    """Rows padded on the right, with their masks."""
    T = max(map(len, rows))
    fill = lambda values: values + [0] * (T - len(values))  # noqa: E731
    return {
        "input_ids": torch.tensor([fill(row) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row)) for row in rows]),
        "completion_mask": torch.tensor(
            [
                fill([0] * prompt + [1] * (len(row) - prompt))
                for row, prompt in zip(rows, prompts, strict=True)
            ]
        ),
    }


def halves(chosen: list[list[int]], rejected: list[list[int]], prompts: list[int]) -> dict[str, torch.Tensor]:
    """A batch of the trainers without a reference."""
    found = {}
    for name, rows in (("chosen", chosen), ("rejected", rejected)):
        own = padded(rows, prompts[:PAIRS])
        found[f"{name}_input_ids"] = own["input_ids"]
        found[f"{name}_attention_mask"] = own["attention_mask"]
        found[f"{name}_labels"] = own["input_ids"].masked_fill(own["completion_mask"] == 0, -100)
    return found


def main() -> None:
    """Writes the file."""
    torch.use_deterministic_algorithms(True)
    cases = {"random": random_cases(), "whole": whole_cases()}
    text = json.dumps(cases, indent=None, separators=(",", ":")).replace('{"config"', '\n{"config"')
    (TESTS / "objective" / "preference_cases.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
