"""Numbers are decimal wherever they are read: on every command line, in configurations, in tables and lists.

YAML 1.1 would read 010 as 8 and 60:00 as 3600, so that two numbers of a loop over 001 ... 010 are one run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import subprocess
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest

from llm_jax.core.arguments import Field, fields_of, read_value
from llm_jax.core.config_tree import coerce, find_key, flat, read_yaml_text, union_members
from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment, override
from llm_jax.generate.__main__ import ids_of
from llm_jax.scaling.grid import GridConfig, GridKeys
from llm_jax.slurm.config import SlurmConfig
from tests.conftest import ROOT

COMMANDS = (
    "launch:LaunchCommand", "generate.__main__:GenerateCommand", "evaluate.__main__:EvaluateCommand",
    "plan.__main__:PlanCommand", "inspect.arguments:InspectArguments", "pretrained.load:LoadCommand",
    "pretrained.save:SaveCommand", "slurm.requeue:RequeueCommand", "slurm.status:StatusCommand",
    "slurm.cancel:CancelCommand", "scaling.fit.__main__:FitCommand", "scaling.report.__main__:ReportCommand",
    "scaling.recommend:RecommendCommand", "scaling.collect:CollectCommand",
    "run.show_data:ShowDataCommand", "run.save_teacher:SaveTeacherCommand", "scaling.transfer:TransferCommand", "scaling.coordinate_check:CoordinateCheckCommand",
    "evaluate.suites.__main__:SuitesCommand", "evaluate.parity:ParityCommand", "evaluate.contamination:ContaminationCommand",
    "evaluate.recall_map:RecallMapCommand", "leaderboard.__main__:LeaderboardCommand", "serve.__main__:ServeCommand",
)  # fmt: skip
NOT_DECIMAL = ("0x10", "0o10", "0b11", "60:00", "1:30", "1,5;", "ten", "1_", "--1", "1 0")
"""Other ways to write numbers, some of which YAML 1.1 reads."""


def test_all_commands_are_here():
    found = subprocess.run(
        ["grep", "-rlE", r"read_command\(\w+, \w+\)", "llm_jax"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    here = {f"llm_jax/{name.split(':')[0].replace('.', '/')}.py" for name in COMMANDS}
    assert {path for path in found if not path.startswith("llm_jax/core/")} <= here | {
        "llm_jax/inspect/__main__.py"
    }


def numeric(kind: Any) -> type | None:
    """int or float, where values of this type are that, or lists of it."""
    members = [member for member in union_members(kind) if member is not type(None)]
    item = get_args(members[0])[0] if get_origin(members[0]) in (tuple, list) else members[0]
    return item if item in (int, float) and len(members) == 1 else None


def fields() -> Iterator[tuple[str, Field]]:
    """The keys of all commands whose values are numbers."""
    for name in COMMANDS:
        module, kind = name.split(":")
        for field in fields_of(getattr(importlib.import_module(f"llm_jax.{module}"), kind)):
            if field.argument.role == "key" and not field.argument.read and numeric(field.value_kind):
                yield f"{kind}.{field.name}", field


FIELDS = dict(fields())


@pytest.mark.parametrize("name", FIELDS)
def test_every_number_of_a_command_is_decimal(name):
    field = FIELDS[name]
    for text, value in (("010", 10), ("008", 8), ("0100", 100), ("1e1", 10), ("0.010", 0.01)):
        with contextlib.suppress(UserError):  # out of the key's range, or no whole number
            assert read_value(field, field.name, text) in (value, (value,))
    for text in NOT_DECIMAL:
        with pytest.raises(UserError, match="must be"):
            read_value(field, field.name, text)


def keys() -> list[tuple[Any, str]]:
    """(configuration, key) of every number of an experiment, of a grid and of a job's settings."""
    return [
        (config, key)
        for config in (Experiment(), GridKeys(GridConfig()), SlurmConfig())
        for key in flat(dataclasses.asdict(config))
        if numeric(find_key(config, key, "next_token")[1])
    ]


def test_every_number_of_a_configuration_is_decimal():
    found = keys()
    assert len(found) > 100
    for config, key in found:
        kind = find_key(config, key, "next_token")[1]
        assert coerce("010", kind) in (10, (10,)), key
        for text in NOT_DECIMAL:
            with pytest.raises(ValueError, match="must be"):
                coerce(text, kind)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("train.seed", "010", 10), ("train.steps", "0100", 100), ("mesh.tensor", "012", 12),
        ("mesh", "{data: 010, tensor: 2}", {"data": 10, "tensor": 2}),
        ("checkpoint.also", "010,0020", (10, 20)),
        ("checkpoint.also", "[010, 8]", (10, 8)), ("data.mixture", "{a: 010, b: 0.5}", {"a": 10.0, "b": 0.5}),
        ("data.mixture.no", "07", 7.0), ("optimizer.learning_rate", "01e-3", 1e-3),
    ],
)  # fmt: skip
def test_numbers_in_tables_and_lists_are_decimal_too(key, value, wanted):
    assert flat(dataclasses.asdict(override(Experiment(), [(key, value)]))).get(key, wanted) == wanted
    made: Any = override(Experiment(), [(key, value)])
    for part in key.split("."):
        made = made[part] if isinstance(made, dict) else getattr(made, part)
    assert made == wanted


def test_a_yaml_file_leaves_numbers_to_their_keys():
    assert read_yaml_text("a: 010\nb: 60:00\nc: [0o7, 0x10, 1_0]\nd: {e: on, f: 1e5}") == {
        "a": "010", "b": "60:00", "c": ["0o7", "0x10", "1_0"], "d": {"e": "on", "f": "1e5"},
    }  # fmt: skip


def test_token_ids_are_decimal():
    assert ids_of("ids", "010,08, 7") == (10, 8, 7)
    for text in ("0x10", "1:30", "1.0", "1e1", ""):
        with pytest.raises(UserError, match="must be token ids"):
            ids_of("ids", text)
