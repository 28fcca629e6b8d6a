"""Makes and runs adapters of the PEFT library, on the model folders of tests/huggingface/fixtures. Needs the
extra `reference`.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tools import huggingface_reference as reference

FIXTURES = Path(__file__).parent.parent / "tests" / "huggingface" / "fixtures"
FILES = ("adapter_config.json", "adapter_model.safetensors")
MINIMAL = (
    "peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path", "task_type", "bias",
    "lora_dropout", "fan_in_fan_out",
)  # fmt: skip
"""The keys of the shortest config in use."""
warnings.filterwarnings("ignore")


def make(base: Path, settings: dict[str, Any], folder: Path, seed: int, dtype: str = "float32") -> None:
    """Writes a PEFT folder: an adapter of these settings (arguments of LoraConfig) as if it had been trained,
    with random values. The base's path is written relative to its parent."""
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", **settings)
    model = get_peft_model(reference.read(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "original_module" not in name:
                # What begins with a part of the base's weights is large: rounding in PEFT's decomposition shows.
                reduced = str(config.init_lora_weights) in ("pissa", "olora")
                scale = 0.06 if reduced else max(0.25 * float(parameter.std()), 0.06)
                parameter.add_(torch.randn_like(parameter) * scale)
    model.peft_config["default"].base_model_name_or_path = f"fixtures/{base.name}"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    if dtype != "float32":
        kind = getattr(torch, dtype)
        tensors = {name: tensor.to(kind) for name, tensor in load_file(folder / FILES[1]).items()}
        save_file(tensors, folder / FILES[1], metadata={"format": "pt"})


def shorten(folder: Path) -> None:
    """Leaves only the keys `MINIMAL` in a folder's config."""
    tree = json.loads((folder / FILES[0]).read_text())
    (folder / FILES[0]).write_text(json.dumps({key: tree[key] for key in MINIMAL}, indent=2))


def separate_experts(base: Path, folder: Path, rank: int, seed: int) -> None:
    """Writes a PEFT folder as of transformers 4, where each expert's matrices are modules: all of them and
    the router have an adapter."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if ".experts." in name or name.endswith(".gate.weight"):
            out, width = tensor.shape
            at = f"base_model.model.{name.removesuffix('.weight')}"
            for side, shape in (("A", (rank, width)), ("B", (out, rank))):
                values = 0.3 * rng.standard_normal(shape).astype(np.float32)
                tensors[f"{at}.lora_{side}.weight"] = torch.from_numpy(values)
    leaves = sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in tensors})
    tree = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none",
        "target_modules": leaves, "base_model_name_or_path": f"fixtures/{base.name}", "lora_dropout": 0.0,
        "fan_in_fan_out": False,
    }  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / FILES[0]).write_text(json.dumps(tree, indent=2))
    save_file(tensors, folder / FILES[1], metadata={"format": "pt"})


def load(base: Path, folder: Path) -> Any:
    """The base with an adapter, as PEFT loads it. Raises where PEFT lacks a tensor, or finds no place for one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(reference.read(base), folder)
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise RuntimeError(f"{folder}: {warning.message}")
    given, taken = load_file(folder / FILES[1]), get_peft_model_state_dict(model)
    if lost := [
        name for name in given if name not in taken and ".experts." not in name and ".gate." not in name
    ]:
        raise RuntimeError(f"{folder}: PEFT has no place for {lost}")
    return model.eval()


def logits(base: Path, folder: Path | None, tokens_BT: np.ndarray) -> np.ndarray:
    """The logits [B, T, V] in float32 of a base with an adapter; None: of the base alone."""
    model = reference.read(base) if folder is None else load(base, folder)
    return reference.logits(model, tokens_BT)
