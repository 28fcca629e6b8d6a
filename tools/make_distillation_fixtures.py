"""Makes tests/objective/distillation.npz: losses and gradients of distillation by TRL (extra `reference`).

  python tools/make_distillation_fixtures.py

Two random linear heads of different widths on random hidden states, with targets of which some are masked.
For each of CASES the loss of TRL's generalized_jsd_loss (mixed with PyTorch's cross-entropy where hard is not
0), and its gradients with respect to the student's hidden states and head.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from trl.experimental.gkd import GKDTrainer

OUT = Path(__file__).parent.parent / "tests" / "objective" / "distillation.npz"
B, T, D, E, V = 2, 7, 6, 9, 19
CASES = [(beta, *more) for beta in (0.0, 0.1, 0.5, 0.9, 1.0) for more in ((1.0, 0.0), (0.7, 0.3))] + [
    (0.5, 3.0, 0.0)
]
"""beta, temperature, hard."""


def main() -> None:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return np.asarray(rng.normal(size=shape), np.float32)

    made = {"x": draw(B, T, D), "head": draw(V, D), "teacher_x": draw(B, T, E), "teacher_head": draw(V, E)}
    made["targets"] = rng.integers(0, V, (B, T)).astype(np.int32)
    made["weights"] = (rng.random((B, T)) < 0.7).astype(np.float32)
    made["cases"] = np.array(CASES, np.float32)
    found = [case(made, *numbers) for numbers in CASES]
    for name, values in zip(("loss", "dx", "dhead"), zip(*found, strict=True), strict=True):
        made[name] = np.stack(values)
    np.savez_compressed(OUT, **made)  # type: ignore[arg-type]
    print(f"{OUT}: {len(CASES)} cases, {OUT.stat().st_size:,} bytes")


def case(made: dict[str, np.ndarray], beta: float, temperature: float, hard: float) -> tuple[np.ndarray, ...]:
    """(loss, gradient of x, gradient of the head)."""
    x, head = (torch.tensor(made[name], requires_grad=True) for name in ("x", "head"))
    teacher = torch.tensor(made["teacher_x"]) @ torch.tensor(made["teacher_head"]).T
    labels = torch.where(torch.tensor(made["weights"]) > 0, torch.tensor(made["targets"]), -100).long()
    student = x @ head.T
    loss = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=temperature)
    entropy = torch.nn.functional.cross_entropy(student.reshape(-1, V), labels.reshape(-1))
    loss = (1 - hard) * loss + hard * entropy
    loss.backward()
    assert x.grad is not None
    assert head.grad is not None
    return loss.detach().numpy(), x.grad.numpy(), head.grad.numpy()


if __name__ == "__main__":
    main()
