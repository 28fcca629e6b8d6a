"""A folder of Hugging Face's as a run folder: python -m llm_jax.pretrained.load FOLDER run_dir=RUN

  python -m llm_jax.pretrained.load ~/models/Qwen3-0.6B run_dir=runs/qwen3_0.6b
  python -m llm_jax.pretrained.load ~/models/big run_dir=runs/big layout=fsdp dtype=bfloat16

FOLDER            config.json, safetensors (one file, or several with an index), and the tokenizer's files
run_dir=RUN       is made; it must not be there, or be empty
dtype=NAME        of the weights and of what is computed: float32 or bfloat16; as the files are if not given
leave_out=NAMES   tensors that are to be left out, with * for anything, joined by commas: "model.layers.61.*" is the layer of DeepSeek-V3 that
                  predicts a second token
layout=NAME       and mesh.AXIS=N, where the weights go on the way: one device if not given
  --help          this text

What generates, evaluates, goes on training or looks into a run takes RUN then. Most of it takes FOLDER as well. Exit codes: 0 done, 2 a
mistake in what was asked, or a model that can't be read here (one line says why).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from llm_jax.core.command import run_command
from llm_jax.core.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(load, arguments)


def load(arguments: list[str]) -> int:
    """The same, with UserErrors raised."""
    from llm_jax.pretrained.arguments import read_asked

    asked = read_asked(arguments, ("FOLDER",), ("run_dir", "leave_out"), need=("run_dir",), opening=("layout", "dtype"))
    if asked is None:
        print(__doc__)
        return 0
    from llm_jax.core.files import check_new_folder
    from llm_jax.pretrained.model import open_model

    run_dir, patterns = Path(asked.values["run_dir"]), asked.values.get("leave_out", "")
    leave_out = tuple(pattern.strip() for pattern in patterns.split(",") if pattern.strip())
    if (asked.paths[0] / "config.yaml").is_file():
        raise UserError(f"{asked.paths[0]}: is a run folder already; FOLDER is one with a config.json and safetensors")
    check_new_folder(run_dir, "run_dir")
    opened = open_model(asked.paths[0], **asked.opening, leave_out=leave_out)
    write_run(opened, run_dir, leave_out)
    return 0


def write_run(opened: Any, run_dir: Path, leave_out: tuple[str, ...] = ()) -> None:
    """A run folder with an opened model, whole or not at all: config.yaml, weights/, tokenizer/, summary.json."""
    from llm_jax.core import checksums
    from llm_jax.core.files import new_folder
    from llm_jax.experiment import to_yaml
    from llm_jax.huggingface.folder import open_folder
    from llm_jax.layout.presets import preset
    from llm_jax.model.accounting import parameters
    from llm_jax.pretrained.save import save_model

    folder = open_folder(opened.path, leave_out)
    experiment = dataclasses.replace(opened.experiment, run_dir=str(run_dir), layout=preset("data_parallel"), mesh={})
    if opened.tokenizer_if_any is not None:
        tokenizer = dataclasses.replace(experiment.tokenizer, file=str(run_dir / "tokenizer"))
        experiment = dataclasses.replace(experiment, tokenizer=tokenizer)
    summary = {
        "experiment": experiment.name,
        "step": 0,
        "loaded_from": str(opened.path.resolve()),
        "family": folder.family.model_type,
        "left_out": list(folder.left_out),
        **parameters(opened.config),
    }
    with new_folder(run_dir) as part:
        save_model(dataclasses.replace(opened, tokenizer_if_any=None), part / "weights", family=folder.family.model_type)
        checksums.write(part / "weights")
        if opened.tokenizer_if_any is not None:
            opened.tokenizer_if_any.save(part / "tokenizer")
        (part / "config.yaml").write_text(to_yaml(experiment))
        (part / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    for name in summary["left_out"]:
        print(f"left out: {name}")
    said = "" if opened.tokenizer_if_any is not None else "; it came without a tokenizer"
    print(f"written: {run_dir} (config.yaml, weights, {'' if said else 'tokenizer, '}summary.json){said}")


if __name__ == "__main__":
    sys.exit(main())
