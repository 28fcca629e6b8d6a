"""Makes tests/huggingface/adapters: PEFT folders of every variant, and the logits that PEFT computes.

    python -m tools.make_adapter_fixtures              # all
    python -m tools.make_adapter_fixtures llama/dora   # these folders

A folder BASE/VARIANT is an adapter of the model in tests/huggingface/fixtures/BASE, with expected.npz: tokens
[1, T], logits and base_logits [1, T, V] in float32. Every adapter moves the logits. Needs the extra
`reference`; the tests don't.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tools import adapter_reference as peft

FOLDER = Path(__file__).parent.parent / "tests" / "huggingface" / "adapters"
LENGTH = 8
SHOWS = 1e-2
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
CASES: dict[str, dict[str, Any]] = {
    "llama/plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "llama/rslora": {"r": 3, "lora_alpha": 4, "use_rslora": True, "target_modules": QKVO},
    "llama/dora": {"r": 4, "lora_alpha": 6, "use_dora": True, "target_modules": "all-linear"},
    "llama/regex": {"r": 2, "target_modules": r".*layers\.[02]\.(self_attn\.[qk]|mlp\.down)_proj"},
    "llama/patterns": {
        "r": 4, "lora_alpha": 10, "target_modules": [*QKVO, "down_proj"],
        "rank_pattern": {"k_proj": 2, r"layers\.1\..*down_proj": 6, "^model.layers.2.self_attn.q_proj": 3},
        "alpha_pattern": {"v_proj": 3, r"layers\.0\.self_attn\.q_proj": 24},
    },
    "llama/layers": {"r": 4, "target_modules": QKVO, "layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "llama/exclude": {"r": 2, "target_modules": "all-linear", "exclude_modules": r".*\.1\..*|.*up_proj"},
    "llama/saved": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "model.norm", "o_proj"]},
    "llama/pissa": {"r": 4, "lora_alpha": 4, "target_modules": [*QKVO, "gate_proj"], "init_lora_weights": "pissa"},
    "llama/olora": {"r": 4, "lora_alpha": 8, "target_modules": QKVO, "init_lora_weights": "olora"},
    "llama/orthogonal": {"r": 4, "target_modules": ["v_proj", "up_proj"], "init_lora_weights": "orthogonal"},
    "llama/embedding": {"r": 4, "target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "llama/bfloat16": {"r": 4, "target_modules": QKVO, "init_lora_weights": "gaussian"},
    "llama/minimal": {"r": 4, "lora_alpha": 16, "target_modules": QKVO},
    "llama_bias_tied/biases": {"r": 2, "target_modules": QKVO, "bias": "all"},
    "llama_bias_tied/lora_biases": {"r": 2, "target_modules": ["q_proj", "up_proj"], "bias": "lora_only", "use_dora": True},
    "llama_bias_tied/embedding": {"r": 4, "target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "llama_bias_tied/saved": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "gpt2/plain": {"r": 4, "lora_alpha": 8},
    "gpt2/dora": {"r": 2, "use_dora": True, "target_modules": ["c_attn", "attn.c_proj", "c_fc"], "fan_in_fan_out": True},
    "gpt2/all": {"r": 2, "target_modules": "all-linear", "rank_pattern": {"c_attn": 5}, "fan_in_fan_out": True},
    "gpt2/pissa": {"r": 3, "lora_alpha": 6, "target_modules": ["c_attn"], "layers_to_transform": [1, 2], "init_lora_weights": "pissa", "fan_in_fan_out": True},
    "gpt2/embedding": {"r": 2, "target_modules": ["wpe", "c_attn"], "fan_in_fan_out": True},
    "gpt_neox/dora": {"r": 4, "use_dora": True, "target_modules": ["query_key_value", "dense"]},
    "gpt_neox/all": {"r": 3, "target_modules": "all-linear"},
    "qwen2/plain": {"r": 4, "target_modules": "all-linear", "use_rslora": True},
    "qwen3/plain": {"r": 2, "target_modules": [*QKVO, "gate_proj"], "layers_to_transform": 1},
    "gemma2/plain": {"r": 2},
    "gemma3/all": {"r": 2, "target_modules": "all-linear", "use_dora": True},
    "olmo2/plain": {"r": 2, "target_modules": [*QKVO, "up_proj"]},
    "mistral/plain": {"r": 2, "target_modules": "all-linear"},
    "deepseek_v3/attention": {
        "r": 3,
        "target_modules": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
        "use_dora": True,
    },
    "mixtral/experts": {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    "mixtral/down": {"r": 3, "lora_alpha": 5, "target_modules": [], "target_parameters": ["experts.down_proj", "gate.weight", "o_proj.weight"]},
    "mixtral/all": {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"},
    "qwen3_moe/experts": {"r": 2, "target_modules": ["v_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
    "mixtral/separate": {},  # not by PEFT: the spelling of transformers 4
    "llama_bias_tied/tied_embedding": {"r": 2, "target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    "llama_bias_tied/tied_saved": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "llama/pissa_head": {"r": 2, "target_modules": ["lm_head"], "init_lora_weights": "pissa", "use_dora": True},
}  # fmt: skip
"""BASE/VARIANT → arguments of LoraConfig. The place in the table is the seed: new ones go to the end."""
DTYPES = {"llama/bfloat16": "bfloat16"}


def main() -> None:
    """Writes the fixtures that the command line names, or all."""
    total = 0
    for number, name in enumerate(CASES):
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        folder, base = FOLDER / name, peft.FIXTURES / name.split("/")[0]
        if not CASES[name]:
            peft.separate_experts(base, folder, rank=2, seed=number)
        else:
            peft.make(base, CASES[name], folder, number, DTYPES.get(name, "float32"))
        if name.endswith("/minimal"):
            peft.shorten(folder)
        tokens_BT = np.random.default_rng(number).integers(4, 83, (1, LENGTH)).astype(np.int32)
        logits, before = (peft.logits(base, one, tokens_BT) for one in (folder, None))
        moved = float(np.abs(logits - before).max())
        if moved < SHOWS:
            raise SystemExit(f"{name}: moves the logits by {moved:.1e} only")
        np.savez_compressed(folder / "expected.npz", tokens=tokens_BT, logits=logits)
        size = sum(file.stat().st_size for file in folder.iterdir())
        total += size
        print(f"{name}: {size / 1e3:.0f} kB, logits moved by {moved:.2g} of {before.std():.2g}", flush=True)
    print(f"{total / 1e3:.0f} kB in all")


if __name__ == "__main__":
    main()
