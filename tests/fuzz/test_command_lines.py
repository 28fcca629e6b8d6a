"""Command lines of any words: a command or one line; and values of experiments come back from their config.yaml."""

from __future__ import annotations

import dataclasses
import math
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_jax.core.arguments import read_command
from llm_jax.core.config_tree import all_keys, flat
from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment, override, read_yaml, resolved, to_yaml

COMMANDS = {
    "llm_jax.generate.__main__": "GenerateCommand",
    "llm_jax.evaluate.__main__": "EvaluateCommand",
    "llm_jax.inspect.__main__": "InspectArguments",
    "llm_jax.plan.__main__": "PlanCommand",
    "llm_jax.launch": "LaunchCommand",
    "llm_jax.pretrained.load": "LoadCommand",
    "llm_jax.pretrained.save": "SaveCommand",
    "llm_jax.scaling.fit.__main__": "FitCommand",
}
VALUES = (
    st.sampled_from(
        ["", " ", "0", "-1", "1", "2", "010", "08", "0x10", "0b1", "0o7", "1_000", "60:00", "1e3", "1e400", "nan", "inf", "-inf", ".5",
         "1.", "true", "yes", "on", "null", "~", "[]", "[1, 2]", "[a", "{}", "{a: 1}", "{a: 1, a: 2}", "{1: 2}", "a: b", "- a", "'", '"',
         "!!python/object/apply:os.system ['false']", "&a [*a]", "2001-01-01", "a=b", "=", "\\n", "é", "日本", "\x00", "９", "²", "../x"]
    )
    | st.text(max_size=10)
)  # fmt: skip
KEYS = sorted(all_keys(Experiment()))


def is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


@pytest.mark.parametrize("module", COMMANDS)
@given(data=st.data())
def test_any_command_line_is_a_command_or_one_line(module, data):
    command = getattr(import_module(module), COMMANDS[module])
    names = [field.name for field in dataclasses.fields(command)] + [
        "temperature",
        "layout",
        "mesh.tensor",
        "columns.loss",
    ]
    words = data.draw(
        st.lists(
            st.tuples(st.sampled_from(names) | st.text(max_size=6), VALUES).map("=".join)
            | st.sampled_from(["runs/x", "--list", "--nonsense", "-h1", "a b"]),
            max_size=5,
        )
    )
    try:
        made = read_command([word for word in words if word not in ("--help", "-h")], command)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert made is None or isinstance(made, command)


@given(st.sampled_from(KEYS), VALUES)
@example("train.seed", "010")
@example("train.steps", "60:00")
@example("data.mixture", "{a: 1, a: 2}")
def test_any_value_of_an_experiment_comes_back_or_is_one_line(tmp_path_factory, key, value):
    base = dataclasses.replace(Experiment(), name="x")
    try:
        made = resolved(override(base, [(key, value)]))
    except UserError as error:
        assert "\n" not in str(error)
        return
    path = Path(tmp_path_factory.getbasetemp()) / "config.yaml"
    path.write_text(to_yaml(made))
    before, after = (flat(dataclasses.asdict(e)) for e in (made, read_yaml(path)))
    assert {k: v for k, v in before.items() if not is_nan(v)} == {
        k: v for k, v in after.items() if not is_nan(v)
    }


@given(st.integers(-(10**12), 10**12), st.sampled_from(["train.seed", "train.steps", "model.layers"]))
def test_whole_numbers_are_read_as_people_write_them(number, key):
    part, name = key.split(".")
    for text in (str(number), f"{number:05d}"):
        try:
            made = override(Experiment(), [(key, text)])
        except UserError:
            continue
        assert getattr(getattr(made, part), name) == number


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
@example("train: {steps: &a [*a]}")
@example("model: {layers: 1}\nmodel: {layers: 2}")
@example("!!python/object/apply:os.system ['false']")
def test_any_configuration_file_is_an_experiment_or_one_line(tmp_path_factory, text):
    path = Path(tmp_path_factory.getbasetemp()) / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        read_yaml(path)
    except UserError as error:
        assert "\n" not in str(error)
