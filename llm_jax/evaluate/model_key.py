"""What a score is the score of: the weights, tokenizer, dtype and layout of a model, and the code."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from llm_jax.core.files import user_path
from llm_jax.core.log import no_log
from llm_jax.data import Tokenizer
from llm_jax.evaluate.encode import Convention
from llm_jax.pretrained.model import dtype_for
from llm_jax.pretrained.source import ModelSource
from llm_jax.pretrained.weights import check_step, weights_sha256, with_adapter_sha256

PACKAGE = Path(__file__).parents[1]
ROOMS = ("model", "data", "objective", "layout", "huggingface", "pretrained", "generate", "evaluate")
"""The folders of the package whose code scores may depend on. (Of a generated task the items are in its own
hash.)"""
NOT_OF = ("evaluate/suites",)
OF_SCORES = (
    "evaluate/statistics.py",
    "evaluate/task_scores.py",
    "evaluate/contamination.py",
    "evaluate/ngrams.py",
    "evaluate/training_text.py",
)
"""The code that makes a result of samples: where it changes, samples are kept and scored again."""
AFTER_SCORES = (
    "evaluate/__main__.py",
    "evaluate/comparison.py",
    "evaluate/parity.py",
    "evaluate/ranks.py",
    "evaluate/recall_map.py",
    "evaluate/task_table.py",
    "evaluate/tasks_command.py",
)
"""The code that only shows results."""


@dataclass(frozen=True)
class ModelKey:
    """A model as it is evaluated. Two of equal keys give the same samples."""

    weights_hash: str
    """sha256 hex of the weights' files, with those of an adapter."""
    tokenizer_hash: str
    step: int
    dtype: str
    layout: str
    """The layout's name, with the sizes of mesh axes that were asked for."""
    apart: bool
    """Whether an adapter stays beside the weights."""
    convention: str
    platform: str
    """cpu, gpu or tpu."""
    code_version: str
    """`code_version`: of the code that makes samples."""

    def digest(self, *more: Any) -> str:
        """16 hex digits of sha256 over the key and what else samples depend on."""
        return hashlib.sha256(json.dumps([asdict(self), more]).encode()).hexdigest()[:16]


def model_key(
    source: ModelSource, tokenizer: Tokenizer, convention: Convention, options: dict[str, Any]
) -> ModelKey:
    """The key of a model that is not open yet. options: those of `open_model`."""
    step = options.get("step")
    check_step(source, step)
    if step is None:
        step = max(source.steps, default=0)
    folder = source.base.path if source.base and options.get("adapter") else source.path
    weights = weights_sha256(folder, step if source.steps else None)
    if options.get("adapter"):
        weights = with_adapter_sha256(weights, user_path(options["adapter"]))
    layout, mesh = options.get("layout"), options.get("mesh") or {}
    platform = jax.default_backend()
    dtype = (
        options.get("dtype")
        or dtype_for(source.experiment.model, platform, no_log)
        or source.experiment.model.compute_dtype
    )
    return ModelKey(
        weights,
        tokenizer.fingerprint,
        step,
        dtype,
        " ".join([layout.name if layout else "single", *(f"{a}={n}" for a, n in sorted(mesh.items()))]),
        bool(options.get("apart")),
        convention.line,
        platform,
        code_version(),
    )


@functools.cache
def code_version() -> str:
    """16 hex digits of sha256 over the code that samples depend on, and JAX's version."""
    left_out = (*NOT_OF, *OF_SCORES, *AFTER_SCORES)
    return hash_of_code(name for room in ROOMS for name in files_of(room) if not name.startswith(left_out))


@functools.cache
def scores_version() -> str:
    """16 hex digits of sha256 over the code that makes results of samples."""
    return hash_of_code(OF_SCORES)


def files_of(room: str) -> list[str]:
    """The names of a room's modules, from the package's folder, in order."""
    return sorted(path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / room).rglob("*.py"))


def hash_of_code(names: Iterable[str]) -> str:
    """16 hex digits of sha256 over modules and their names, and JAX's version."""
    digest = hashlib.sha256(jax.__version__.encode())
    for name in names:
        digest.update(name.encode() + b"\0" + (PACKAGE / name).read_bytes())
    return digest.hexdigest()[:16]
