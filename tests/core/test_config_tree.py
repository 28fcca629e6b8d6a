"""Text as the types of keys, from a command line or YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml

from llm_jax.core.config_tree import (
    CLASS_OF,
    WrongType,
    coerce,
    from_tree,
    read_yaml_text,
    typed,
    with_values,
    write_yaml_text,
)
from llm_jax.core.errors import UserError


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
        ("[a, b", tuple[str, ...], "must be a list"), ("a", tuple[str, ...], "must be a list"),
        ("[a]", tuple[int, ...], "must be whole numbers with commas"),
        ("3", dict[str, int], "must be a table"), ("{a: x}", dict[str, int], "must be a table"), ("", Path, "must be a file or folder"),
    ],
)  # fmt: skip
def test_value_of_another_type(value, kind, says):
    with pytest.raises(WrongType, match="must be") as error:
        coerce(value, kind)
    assert says in str(error.value)


def test_yaml_scalars_stay_text():
    tree = read_yaml_text(
        "a: 1e-3\nb: 010\nc: 24:00:00\nd: no\ne: null\nf:\ng: 'null'\nh: [1, x]\ni: 2026-01-01\n"
    )
    assert tree == {
        "a": "1e-3",
        "b": "010",
        "c": "24:00:00",
        "d": "no",
        "e": None,
        "f": None,
        "g": "null",
        "h": ["1", "x"],
        "i": "2026-01-01",
    }


def test_yaml_key_twice():
    with pytest.raises(yaml.YAMLError, match="a: is given twice"):
        read_yaml_text("a: 1\na: 2\n")


@dataclass(frozen=True)
class Loss:
    """What is minimised."""

    name: str = ""


@dataclass(frozen=True)
class Plain(Loss):
    name: str = "plain"
    chunk: int = 8


@dataclass(frozen=True)
class Pairs(Loss):
    name: str = "pairs"
    beta: float = 0.1


def loss_class(name: str) -> type[Loss]:
    """The loss of that name."""
    if name not in ("plain", "pairs"):
        raise UserError(f"loss.name={name}: no such loss")
    return Plain if name == "plain" else Pairs


@dataclass(frozen=True)
class Tree:
    steps: int = 3
    rate: float = 0.5
    layers: tuple[int, ...] = ()
    mesh: dict[str, int] = field(default_factory=dict)
    loss: Loss = field(default_factory=Plain, metadata={CLASS_OF: loss_class})


def test_a_name_chooses_the_class_of_a_group():
    assert with_values(Tree(), [("loss.beta", "0.2"), ("loss", "pairs")]).loss == Pairs(beta=0.2)
    assert with_values(Tree(), [("loss.name", "pairs")]).loss == Pairs()
    assert with_values(Tree(loss=Plain(chunk=4)), [("loss", "plain")]).loss == Plain(chunk=4)
    assert with_values(Tree(loss=Pairs(beta=0.3)), [("steps", "4")]).loss == Pairs(beta=0.3)


def test_a_class_that_a_name_chose_is_written_and_read():
    tree = Tree(steps=4, mesh={"b": 2, "a": 1}, loss=Pairs(beta=1e-5))
    assert from_tree(Tree(), read_yaml_text(write_yaml_text(tree))) == tree
    assert list(from_tree(Tree(), read_yaml_text(write_yaml_text(tree))).mesh) == ["b", "a"]


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([("loss", "pears")], "loss.name=pears: no such loss"),
        ([("loss.beta", "1")], "loss.beta=1: there is no key 'loss.beta'"),
        ([("loss", "pairs"), ("loss.chunk", "1")], "loss.chunk=1: there is no key 'loss.chunk'"),
        ([("steps", "x")], "steps=x: must be a whole number"),
        ([("stepz", "1")], "did you mean 'steps'?"),
        ([("mesh", "1")], "mesh=1: must be a table"),
    ],
)
def test_mistakes_in_values(pairs, says):
    with pytest.raises(UserError) as error:
        with_values(Tree(), pairs)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loss: {name: pears}", "loss.name=pears: no such loss"),
        ("loss: {beta: 1}", "loss.beta: there is no key 'loss.beta'"),
        ("loss: 3", "loss: must be a table of keys and values"),
        ("stepz: 3", "did you mean 'steps'?"),
        ("steps: 1.5", "steps=1.5: must be a whole number"),
        ("steps: null", "steps=None: must be a whole number"),
        ("- 1", "must be a table"),
    ],
)
def test_mistakes_in_yaml(text, says):
    with pytest.raises(UserError) as error:
        from_tree(Tree(), read_yaml_text(text))
    assert says in str(error.value)


def test_values_that_python_did_not_check_become_their_types():
    given: Any = Tree(rate=1, layers=[1, 2])  # type: ignore[arg-type]
    made = typed(given)
    assert (made.rate, type(made.rate), made.layers) == (1.0, float, (1, 2))
    with pytest.raises(UserError, match="steps=many: must be a whole number"):
        typed(Tree(steps="many"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="loss=3: must be a Loss"):
        typed(Tree(loss=3))  # type: ignore[arg-type]


def test_a_table_is_replaced_and_its_entries_are_set():
    tree = Tree(mesh={"a": 1})
    assert with_values(tree, [("mesh.b", "2")]).mesh == {"a": 1, "b": 2}
    assert with_values(tree, [("mesh", "{b: 2}")]).mesh == {"b": 2}
    assert from_tree(tree, {"mesh": {"b": "2"}}).mesh == {"b": 2}
