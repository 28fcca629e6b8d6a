"""Makes tests/huggingface/fixtures: a tiny random model of every family, and its logits by transformers.

    python -m tools.make_huggingface_fixtures              # all
    python -m tools.make_huggingface_fixtures gemma2 qwen3 # these folders

A fixture is a model folder (config.json, tensors) with config.other.json, in the other spelling, and
expected.npz, in float32:

- full_*: 2 rows of 48 tokens, longer than every window: input_ids, logits;
- left_*, right_*: documents of 20 and 13 tokens, padded on that side: input_ids, mask, position_ids, logits
  (0 at padding);
- packed_*: documents of 9, 1 and 12 tokens in one row: input_ids, position_ids, segment_ids (from 1), logits
  of each document alone;
- left_greedy_new_tokens: 32 tokens of greedy continuation of the left-padded documents.

Before a fixture is written it is checked: float64 and the config in the other spelling give equal logits,
padding has no effect, and every key that differs from its default moves the logits. Needs the extra
`reference`; the tests don't.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools import huggingface_reference as reference
from tools.huggingface_cases import CASES, Case

FIXTURES = Path(__file__).parent.parent / "tests" / "huggingface" / "fixtures"
ROUNDING = 5e-5  # float32 and float64 differ by about 1e-5, unless the choice of an expert is a near tie
SHOWS = 1e-2  # the effect of a feature on the logits must be at least this
MARGIN = 2e-3  # between the best token and the next, so that greedy text doesn't depend on rounding
NEUTRAL: dict[str, Any] = {
    "use_sliding_window": False, "attn_logit_softcapping": None, "final_logit_softcapping": None,
    "norm_topk_prob": None, "layer_types": None, "topk_group": None, "rope_interleave": False,
    "routed_scaling_factor": 1.0, "sliding_window": 4096, "query_pre_attn_scalar": 12,
    "use_parallel_residual": True, "layer_norm_epsilon": 1e-5, "rms_norm_eps": 1e-2, "rope_parameters": None,
}  # fmt: skip
"""The value that replaces a key's to test that the key has an effect; None: see `without`."""


def documents(lengths: list[int], vocab: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random token ids of documents, without special tokens."""
    return [rng.integers(4, vocab, length).astype(np.int32) for length in lengths]


def padded(rows: list[np.ndarray], left: bool) -> dict[str, np.ndarray]:
    """Documents side by side, padded on one side, with positions that count real tokens."""
    T = max(map(len, rows))
    ids, mask = np.full((len(rows), T), reference.PAD, np.int32), np.zeros((len(rows), T), np.int32)
    for row, document in enumerate(rows):
        at = slice(T - len(document), T) if left else slice(0, len(document))
        ids[row, at], mask[row, at] = document, 1
    return {
        "input_ids": ids,
        "mask": mask,
        "position_ids": np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32),
    }


def compute(model: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays of expected.npz, by name."""
    vocab, alone = model.config.vocab_size, lambda document: reference.logits(model, document[None])[0]
    expected: dict[str, np.ndarray] = {"full_input_ids": np.stack(documents([48, 48], vocab, rng))}
    expected["full_logits"] = reference.logits(model, expected["full_input_ids"])
    rows = documents([20, 13], vocab, rng)
    for side in ("left", "right"):
        batch = padded(rows, left=side == "left")
        # The reference is each document alone; transformers' result with padding is compared with it.
        batch["logits"] = np.zeros((*batch["mask"].shape, vocab), np.float32)
        for row, document in enumerate(rows):
            batch["logits"][row, batch["mask"][row] == 1] = alone(document)
        theirs = reference.logits(
            model, batch["input_ids"], attention_mask=batch["mask"], position_ids=batch["position_ids"]
        )
        near(np.where(batch["mask"][..., None] == 1, theirs, 0), batch["logits"], f"{side} padding")
        expected |= {f"{side}_{name}": value for name, value in batch.items()}
    packed = documents([9, 1, 12], vocab, rng)
    expected |= {
        "packed_input_ids": np.concatenate(packed)[None],
        "packed_position_ids": np.concatenate([np.arange(len(d)) for d in packed])[None].astype(np.int32),
        "packed_segment_ids": np.repeat([1, 2, 3], [len(d) for d in packed])[None].astype(np.int32),
        "packed_logits": np.concatenate([alone(d) for d in packed])[None],
    }
    new = reference.greedy(model, expected["left_input_ids"], expected["left_mask"], 32)
    for document, tokens in zip(rows, new, strict=True):
        following = alone(np.concatenate([document, tokens])[:-1])[len(document) - 1 :]
        best = np.sort(following, -1)
        if (following.argmax(-1) != tokens).any() or (best[:, -1] - best[:, -2]).min() < MARGIN:
            raise ArithmeticError("the greedy continuation depends on rounding")
    return expected | {"left_greedy_new_tokens": new}


def near(a: np.ndarray, b: np.ndarray, what: str) -> None:
    """Raises ArithmeticError if two results that should be equal differ by more than rounding."""
    if (worst := float(np.abs(a - b).max())) > ROUNDING:
        raise ArithmeticError(f"{what}: {worst:.1e}")


def make(name: str, case: Case, folder: Path) -> str:
    """Writes one fixture; returns a line that describes it."""
    for seed in range(20):
        model = reference.build(case, seed)
        try:
            expected = compute(model, np.random.default_rng([seed, 1]))
            near(
                reference.logits(copy.deepcopy(model).double(), expected["full_input_ids"]),
                expected["full_logits"],
                "float64",
            )
            break
        except ArithmeticError as why:
            print(f"{name}: seed {seed}: {why}", flush=True)
    else:
        raise SystemExit(f"{name}: no seed gives an unambiguous fixture")
    reference.write(model, case, folder)
    for config in ("config.json", "config.other.json"):
        near(
            reference.logits(reread(folder, config), expected["full_input_ids"]),
            expected["full_logits"],
            f"{name}, {config}",
        )
    moved = {
        key: effect(case, key, seed, expected)
        for key in case.config
        if key in NEUTRAL and not idle(case, key)
    }
    for key, by in moved.items():
        if by < SHOWS:
            raise SystemExit(f"{name}: {key}={case.config[key]} moves the logits by {by:.1e} only")
    np.savez_compressed(folder / "expected.npz", **expected)  # type: ignore[arg-type]
    size = sum(file.stat().st_size for file in folder.iterdir())
    effects = ", ".join(f"{key} {by:.2g}" for key, by in moved.items())
    return (
        f"{name}: seed {seed}, {size / 1e3:.0f} kB, logits of standard deviation "
        f"{expected['full_logits'].std():.1f}; moved by {effects or 'nothing'}"
    )


def reread(folder: Path, config: str) -> Any:
    """The folder's model as transformers reads it with one of the two spellings."""
    with tempfile.TemporaryDirectory() as temporary:
        for file in folder.iterdir():
            if not file.name.startswith("config") or file.name == config:
                (Path(temporary) / ("config.json" if file.name == config else file.name)).symlink_to(
                    file.resolve()
                )
        return reference.read(Path(temporary))


def effect(case: Case, key: str, seed: int, expected: dict[str, np.ndarray]) -> float:
    """The change of the logits when a key is neutralised; for rope_parameters with more than a base, one key
    inside.
    """
    changed = dataclasses.replace(case, config={**case.config, key: without(case, key)})
    model = reference.build(changed, seed)
    return float(np.abs(reference.logits(model, expected["full_input_ids"]) - expected["full_logits"]).max())


def idle(case: Case, key: str) -> bool:
    """True if a key has no effect because of another one, which readers must respect."""
    if key == "sliding_window":
        return case.family.startswith("qwen") and not case.config.get("use_sliding_window")
    return key == "topk_group" and case.config["n_group"] == 1


def without(case: Case, key: str) -> Any:
    """A value of the key that changes its effect."""
    value = case.config[key]
    if key == "rope_parameters":
        if case.family == "gemma3_text":
            return {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in value}
        kept = (
            {"partial_rotary_factor": value["partial_rotary_factor"]}
            if "partial_rotary_factor" in value
            else {}
        )
        return {
            "rope_type": "default",
            "rope_theta": 10000.0 if value["rope_type"] != "default" else 50.0,
        } | kept
    if key == "layer_types":
        return value[::-1] if value[::-1] != value else [*value[1:], value[0]]
    if key == "norm_topk_prob":
        return not value
    if key == "topk_group":
        return case.config["n_group"]
    return NEUTRAL[key]


def main() -> None:
    """Writes the fixtures that the command line names, or all."""
    torch.set_num_threads(1)  # sums in one order
    names = sys.argv[1:] or list(CASES)
    if unknown := set(names) - set(CASES):
        raise SystemExit(f"{', '.join(sorted(unknown))}: no case; there are {', '.join(CASES)}")
    for name in names:
        print(make(name, CASES[name], FIXTURES / name), flush=True)
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "bytes": sum(f.stat().st_size for f in FIXTURES.rglob("*") if f.is_file()),
            }
        )
    )


if __name__ == "__main__":
    main()
