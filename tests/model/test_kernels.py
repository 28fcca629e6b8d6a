"""Attention kernels are the files of `llm_jax/model/kernels/`, found by name."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from llm_jax.core.errors import UserError
from llm_jax.model import kernels
from llm_jax.model.config import ModelConfig
from llm_jax.model.kernels import KERNELS, AttentionKernel, find_kernel

FUNCTIONS = ("attend", "check", "chunk_kernel")


def test_every_file_of_the_folder_is_a_kernel():
    folder = Path(kernels.__file__).parent
    assert set(KERNELS) == {path.stem for path in folder.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_defines_the_functions_of_the_protocol(name):
    for function in FUNCTIONS:
        parameters = list(inspect.signature(getattr(AttentionKernel, function)).parameters)
        assert list(inspect.signature(getattr(find_kernel(name), function)).parameters) == parameters[1:]


@pytest.mark.parametrize("name", KERNELS)
def test_a_configuration_accepts_each_kernel(name):
    assert ModelConfig(attention=name).resolved().attention == name


def test_an_unknown_kernel_is_refused_with_the_nearest():
    line = "^model.attention=block: must be one of blocked, cudnn, xla; did you mean 'blocked'"
    for refused in (lambda: find_kernel("block"), ModelConfig(attention="block").resolved):
        with pytest.raises(UserError, match=line):
            refused()
