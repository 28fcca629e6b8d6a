"""Makes tests/objective/reward_cases.json: losses and gradients of reward models by TRL (extra `reference`).

  python tools/make_reward_fixtures.py

RewardTrainer.compute_loss on random rewards, with margins and centring and without.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from trl import RewardTrainer

OUT = Path(__file__).parent.parent / "tests" / "objective" / "reward_cases.json"
PAIRS = 6


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randn(n, generator=generator)  # noqa: E731
    cases = [
        case(3 * draw(2 * PAIRS), margin, centring)
        for margin in (None, draw(PAIRS))
        for centring in (None, 0.01, 0.5)
    ]
    OUT.write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")
    print(f"{OUT}: {len(cases)} cases")


def case(rewards: torch.Tensor, margin: torch.Tensor | None, centring: float | None) -> dict[str, Any]:
    """The loss of chosen and rejected rewards, and its gradient."""
    rewards = rewards.requires_grad_()
    same = lambda x: x  # noqa: E731
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=centring),
        accelerator=SimpleNamespace(gather=same, gather_for_metrics=same),
        _metrics={
            "eval": {name: [] for name in ("min_reward", "mean_reward", "max_reward", "accuracy", "margin")}
        },
        _total_train_tokens=0,
    )
    inputs = {} if margin is None else {"margin": margin}
    model = lambda **more: SimpleNamespace(logits=rewards[:, None])  # noqa: E731
    loss = RewardTrainer.compute_loss(trainer, model, inputs)
    loss.backward()
    assert rewards.grad is not None
    chosen, rejected = rewards.detach().chunk(2)
    return {
        "chosen": chosen.tolist(), "rejected": rejected.tolist(), "margin": None if margin is None else margin.tolist(),
        "centring": centring or 0.0, "loss": loss.item(), "gradient": rewards.grad.tolist(),
        "accuracy": trainer._metrics["eval"]["accuracy"][0],
    }  # fmt: skip


if __name__ == "__main__":
    main()
