"""JAX's cache of compiled programs on disk: the second process that needs a program reads it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from llm_jax.data.config import DataConfig

WORTH_KEEPING = 0.2
"""Seconds: programs that compile faster are not kept."""


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache, unless JAX_COMPILATION_CACHE_DIR names another folder.

    Not in `data.cache_dir`: a config.yaml from elsewhere may name a folder of its own there, and programs are
    loaded from the cache and run.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(DataConfig().cache_path() / "compiled"))
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
