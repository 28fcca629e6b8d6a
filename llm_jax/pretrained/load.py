"""The command `python -m llm_jax.pretrained.load`: imports a Hugging Face model folder, or a
GGUF file, as a run folder.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_jax.core.arguments import argument, part, positional, read_command
from llm_jax.core.command import run_command
from llm_jax.core.errors import UserError
from llm_jax.core.files import check_new_folder, new_folder
from llm_jax.pretrained.arguments import ModelArguments

if TYPE_CHECKING:
    from llm_jax.pretrained.model import PretrainedModel


@dataclass(frozen=True, kw_only=True)
class LoadCommand:
    """Imports a Hugging Face model folder, or a GGUF file, as a run folder: python -m llm_jax.pretrained.load
    FOLDER run_dir=RUN

      python -m llm_jax.pretrained.load ~/models/Qwen3-0.6B run_dir=runs/qwen3_0.6b
      python -m llm_jax.pretrained.load SmolLM2-135M-Instruct.Q4_1.gguf run_dir=runs/smollm2
      python -m llm_jax.pretrained.load ~/models/big run_dir=runs/big layout=fsdp dtype=bfloat16

    Commands that generate, evaluate, inspect or continue training then take RUN. Most of them also take
    FOLDER itself.

    Exit codes: 0 done, 2 a mistake in the command line, or a model that can't be read (one line names it).
    """

    folder: Path = positional("FOLDER")
    """The Hugging Face model folder: config.json, safetensors (one file, or several with an index), and the
    tokenizer's files; or a GGUF file, which has all of these in it."""
    run_dir: Path = argument(shown="RUN")
    """The run folder that is made; it must be new or empty."""
    leave_out: str = argument("", shown="NAMES")
    """Tensors to leave out, separated by commas, with * for any text: "model.layers.61.*" is the layer of
    DeepSeek-V3 that predicts a second token."""
    model: ModelArguments = part(ModelArguments, without=("step", "decode"))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(load, arguments)


def load(arguments: list[str]) -> int:
    """Reads the command line and writes the run folder. Raises UserError."""
    command = read_command(arguments, LoadCommand)
    if command is None:
        return 0
    from llm_jax.pretrained.model import open_model  # imports JAX, which `run_command` sets up
    from llm_jax.pretrained.source import open_source

    leave_out = tuple(pattern.strip() for pattern in command.leave_out.split(",") if pattern.strip())
    if (command.folder / "config.yaml").is_file():
        raise UserError(
            f"{command.folder}: is a run folder already; give a Hugging Face folder, with a config.json "
            "and safetensors"
        )
    check_new_folder(command.run_dir, "run_dir")
    options = command.model.options()
    source = open_source(command.folder, leave_out, options.pop("adapter", None) or None)
    opened = open_model(source, **options, to_convert=True, outputs=source.experiment.model.outputs)
    write_run(opened, command.run_dir)
    return 0


def write_run(pretrained: PretrainedModel, run_dir: Path) -> None:
    """Writes a loaded model as a run folder, which appears only once it is complete.

    It has config.yaml, weights/, summary.json and, unless the model came without one, tokenizer/.
    """
    from llm_jax.core import checksums
    from llm_jax.experiment import to_yaml
    from llm_jax.layout.presets import preset
    from llm_jax.model.accounting import parameters
    from llm_jax.pretrained.save import save_model

    folder, tokenizer = pretrained.folder, pretrained.tokenizer_if_any
    assert folder is not None, "a model that was trained here has a run folder"
    experiment = dataclasses.replace(
        pretrained.experiment, run_dir=str(run_dir), layout=preset("data_parallel"), mesh={}
    )
    if tokenizer is not None:
        settings = dataclasses.replace(experiment.tokenizer, file=str(run_dir / "tokenizer"))
        experiment = dataclasses.replace(experiment, tokenizer=settings)
    summary = {
        "experiment": experiment.name,
        "step": 0,
        "loaded_from": str(pretrained.path.resolve()),
        "family": folder.family.model_type,
        "left_out": list(folder.left_out),
        **parameters(pretrained.config),
    }
    with new_folder(run_dir) as partial:
        without_tokenizer = dataclasses.replace(pretrained, tokenizer_if_any=None)
        save_model(without_tokenizer, partial / "weights", family=folder.family.model_type)
        checksums.write(partial / "weights")
        if tokenizer is not None:
            tokenizer.save(partial / "tokenizer")
        (partial / "config.yaml").write_text(to_yaml(experiment))
        (partial / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    for name in folder.left_out:
        print(f"left out: {name}")
    if tokenizer is None:
        print(f"written: {run_dir} (config.yaml, weights, summary.json); it came without a tokenizer")
    else:
        print(f"written: {run_dir} (config.yaml, weights, tokenizer, summary.json)")


if __name__ == "__main__":
    sys.exit(main())
