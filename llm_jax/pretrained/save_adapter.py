"""Exports an adapter apart from its base, as a PEFT folder; and what merging it into the base changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.config_tree import flat
from llm_jax.core.errors import UserError
from llm_jax.core.files import check_new_folder, new_folder
from llm_jax.core.log import no_log
from llm_jax.huggingface.gguf.header import is_gguf
from llm_jax.huggingface.peft import Base, PeftAdapter, read_peft
from llm_jax.huggingface.peft_write import made_here, write_peft
from llm_jax.model.adapters import REDUCING
from llm_jax.objective.logprobs import hidden_states
from llm_jax.objective.reward import rewards
from llm_jax.pretrained.adapter import base_of, on_host
from llm_jax.pretrained.adapter_apart import ADAPTER, adapter_of_run, beyond_blocks
from llm_jax.pretrained.model import PretrainedModel, open_model
from llm_jax.pretrained.source import ModelSource, open_source, weights_folder
from llm_jax.pretrained.weights import initial_parameters

TOKENS = 64
"""The number of tokens whose logits are compared: drawn at random, as a text of any model."""


def has_adapter(source: ModelSource) -> bool:
    """Whether a model is a base with an adapter: a run's, or that of a PEFT folder."""
    return source.adapter is not None or source.experiment.adapter.rank > 0


def save_apart(
    source: ModelSource, folder: Path, step: int | None = None, log: Callable[[str], None] = print
) -> None:
    """Writes an adapter as a PEFT folder, which appears only once it is complete: that of a run's checkpoint
    (`step`; None: the newest), or that of a PEFT folder again.

    Raises UserError for a model without an adapter, and for what a PEFT folder can't have.
    """
    check_new_folder(folder, "FOLDER")
    adapter, base = adapter_of_folder(source) if source.adapter else adapter_of_run_folder(source, step, log)
    with new_folder(folder) as partial:
        write_peft(adapter, base, partial)
    ranks = sorted({int(rank) for low in adapter.low_rank.values() for rank in low.ranks.ravel() if rank})
    log(
        f"{source.path}: adapter of rank {', '.join(map(str, ranks))} on {len(adapter.low_rank)} weights of "
        f"{adapter.config.base or 'a base without a name'}"
    )


def adapter_of_folder(source: ModelSource) -> tuple[PeftAdapter, Base]:
    """The adapter of a PEFT folder as it is there, and its base."""
    assert source.adapter is not None
    assert source.base is not None
    base = base_of(source.base)
    return read_peft(source.adapter, base), base


def adapter_of_run_folder(
    source: ModelSource, step: int | None, log: Callable[[str], None]
) -> tuple[PeftAdapter, Base]:
    """The adapter of a run's checkpoint, for the base that the run started from, and this base."""
    experiment = source.experiment
    start = experiment.train.start_from
    if not experiment.adapter.rank:
        raise UserError(f"adapter=apart: {source.path} has no adapter. Leave this key out")
    opened = open_model(
        source,
        dtype="float32",
        step=step,
        apart=True,
        tokenizer=False,
        to_convert=True,
        outputs=experiment.model.outputs,
    )
    check_base_as_it_was(opened, start)
    arrays = adapter_arrays_of(opened, opened.parameters)
    first: dict[str, np.ndarray] = {}
    if experiment.adapter.start in REDUCING:
        log(f"adapter.start={experiment.adapter.start}: saved for the base as it was, with twice the rank")
        first = adapter_arrays_of(opened, initial_parameters(experiment, opened.program, no_log))
    base_source = open_source(start)
    base = base_of(base_source, opened.config)
    low_rank = adapter_of_run(opened.program.adapted, arrays, first)
    return made_here(low_rank, base, base_name(base_source, log)), base


def check_base_as_it_was(opened: PretrainedModel, start: str) -> None:
    """Raises UserError for a run that changed more of its base than a PEFT folder of an adapter has."""
    experiment = opened.experiment
    beside = sorted(opened.program.trained - opened.program.adapted.trained)
    if beside:
        raise UserError(
            f"train.trainable: {beside[0]} was trained beside the adapter, and is not a part of it. Save "
            "with adapter=merged"
        )
    if experiment.tokenizer.control and opened.config.vocab != open_source(start).experiment.model.vocab:
        raise UserError(
            f"tokenizer.control={list(experiment.tokenizer.control)}: the run added rows for these tokens, "
            f"which {start} lacks. Save with adapter=merged"
        )


def adapter_arrays_of(opened: PretrainedModel, parameters: Any) -> dict[str, np.ndarray]:
    """The arrays of a model's adapter, by name, in this process's memory."""
    return {
        name: on_host(array, opened.program)
        for name, array in flat(parameters).items()
        if name.rpartition(".")[2] in ADAPTER
    }


def base_name(source: ModelSource, log: Callable[[str], None]) -> str:
    """The `base_model_name_or_path` of an adapter's base: its Hugging Face folder, or its run folder, with a
    line that PEFT needs the former."""
    folder = None if source.steps else weights_folder(source.path)
    if folder is None or source.adapter is not None or is_gguf(folder):
        log(
            f"its base {source.path} is no Hugging Face folder, which PEFT needs: write one with "
            f"python -m llm_jax.pretrained.save {source.path} FOLDER, and put that path into "
            "adapter_config.json"
        )
    return str((folder or source.path).absolute())


def change_by_merging(source: ModelSource, merged: PretrainedModel, dtype: str) -> str:
    """A line with the largest and the mean change of a logit (of a reward model: a reward) by merging an
    adapter and rounding the weights to `dtype`, from the adapter beside its base, all computed in float32.

    merged: in float32. Of an adapter that is more than factors on blocks, it takes the place of the adapter
    beside its base.
    """
    vocab, positions = merged.config.vocab or 1, merged.config.positions
    learned = merged.config.position == "learned"
    ids = np.random.default_rng(0).integers(0, vocab, (1, min(TOKENS, positions) if learned else TOKENS))
    kind, name = merged.config.outputs, "logit" if merged.config.outputs == "logits" else "reward"
    ones = np.ones(ids.shape, np.int32)
    batch = {
        "tokens": ids.astype(np.int32),
        "positions": np.arange(ids.size, dtype=np.int32)[None],
        "segments": ones,
        "weights": ones.astype(np.float32),
    }
    of_head: dict[str, Any] = {
        "logits": lambda model, batch: model(batch["tokens"]),
        "reward": lambda model, batch: rewards(model, hidden_states(model, batch)),
    }
    head = of_head[kind]

    def outputs(model: PretrainedModel, parameters: Any) -> np.ndarray:
        program = model.program
        with jax.set_mesh(program.place.mesh):
            forward = program.jit(lambda p, batch: head(program.model(p), batch))
            return on_host(forward(parameters, batch), program)

    after = outputs(merged, jax.tree.map(lambda w: w.astype(dtype).astype(jnp.float32), merged.parameters))
    if source.adapter is None or not beyond_blocks(adapter_of_folder(source)[0]):
        step = merged.step or None
        # Its lines were logged when the merged model was opened.
        merged = open_model(
            source, dtype="float32", step=step, apart=True, tokenizer=False, outputs=kind, log=no_log
        )
    before = outputs(merged, merged.parameters)
    change = np.abs(after - before)
    return (
        f"merged in float32, cast to {dtype}: the largest change of a {name} is {change.max():.2g}, the mean "
        f"{change.mean():.2g} (of {ids.size} random tokens; {name}s have a standard deviation of "
        f"{before.std():.2g})"
    )
