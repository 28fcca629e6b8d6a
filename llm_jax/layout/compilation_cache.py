"""JAX's cache of compiled programs on disk: the second process that needs a program reads it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

WORTH_KEEPING = 0.2
"""Seconds: programs that compile faster are not kept."""


def use_compilation_cache(folder: Path) -> None:
    """Keeps compiled programs in `folder`/compiled, unless JAX_COMPILATION_CACHE_DIR names another folder."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Turns JAX's compilation cache off. It can write programs for absent devices but not read them: it would
    warn and recompile."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it reads the option only once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()
