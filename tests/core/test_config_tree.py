"""Text as the types of keys, from a command line or YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml

from llm_jax.core.config_tree import WrongType, coerce, read_yaml_text


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("8", int, 8), ("010", int, 10), ("-1", int, -1), ("5e9", int, 5_000_000_000), ("1_000", int, 1000), (np.int64(3), int, 3),
        ("1e-3", float, 1e-3), ("3", float, 3.0), (3, float, 3.0), ("inf", float, float("inf")),
        ("true", bool, True), ("False", bool, False), ("no", bool, False), (True, bool, True),
        ("no", str, "no"), ("1e5", str, "1e5"), ("*.txt", str, "*.txt"), ("", str, ""),
        ("null", int | None, None), ("~", float | None, None), ("", int | None, None), (None, int | None, None), ("4", int | None, 4),
        ("rope", Literal["rope", "learned"], "rope"), ("2", Literal[1, 2], 2),
        ("[a, b]", tuple[str, ...], ("a", "b")), ("[no, 1e5]", tuple[str, ...], ("no", "1e5")), ("8,16", tuple[int, ...], (8, 16)),
        ([1, 2], tuple[int, ...], (1, 2)), ("[]", tuple[int, ...], ()), ("[1,2]", list[int], [1, 2]),
        ("{a: 1, b.c: 2.5}", dict[str, float], {"a": 1.0, "b.c": 2.5}), ({"x": 1}, dict[str, float], {"x": 1.0}), ("{}", dict[str, int], {}),
        ("~/x", Path, Path("~/x").expanduser()),
    ],
)  # fmt: skip
def test_value_as_a_type(value, kind, expected):
    made = coerce(value, kind)
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        ("1.5", int, "must be a whole number"), ("1e400", int, "must be a whole number"), ("nan", int, "must be a whole number"),
        ("1:30", int, "must be a whole number"), ("", int, "must be a whole number"), (1.5, int, "must be a whole number"),
        (True, int, "must be a whole number"), (None, int, "must be a whole number"), ("x", int | None, "must be a whole number, or null for none"),
        ("fast", float, "must be a number"), (False, float, "must be a number"), ("maybe", bool, "must be true or false"),
        (1, str, "must be text"), ("cosin", Literal["cosine", "linear"], "did you mean 'cosine'?"),
        ("[a, b", tuple[str, ...], "must be a list"), ("a", tuple[str, ...], "must be a list"), ("[a]", tuple[int, ...], "must be a list"),
        ("3", dict[str, int], "must be a table"), ("{a: x}", dict[str, int], "must be a table"), ("", Path, "must be a file or folder"),
    ],
)  # fmt: skip
def test_value_of_another_type(value, kind, says):
    with pytest.raises(WrongType, match="must be") as error:
        coerce(value, kind)
    assert says in str(error.value)


def test_yaml_scalars_stay_text():
    tree = read_yaml_text("a: 1e-3\nb: 010\nc: 24:00:00\nd: no\ne: null\nf:\ng: 'null'\nh: [1, x]\ni: 2026-01-01\n")
    assert tree == {"a": "1e-3", "b": "010", "c": "24:00:00", "d": "no", "e": None, "f": None, "g": "null", "h": ["1", "x"], "i": "2026-01-01"}


def test_yaml_key_twice():
    with pytest.raises(yaml.YAMLError, match="a: is given twice"):
        read_yaml_text("a: 1\na: 2\n")
