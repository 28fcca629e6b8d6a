"""A command line is read into a dataclass; a mistake is one line that names the key, the value and what is
right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from llm_jax.core import arguments
from llm_jax.core.arguments import Pairs, argument, flag, in_order, part, passed_on, positional, read_command
from llm_jax.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where it runs."""

    layout: Literal["fsdp", "tensor"] | None = None
    """The layout."""
    mesh: dict[str, int] = argument({}, entry="AXIS", least=-1)
    """The size of an axis."""
    step: int | None = argument(None, least=0)
    """The checkpoint."""

    def check(self) -> None:
        """Mesh sizes need a layout."""
        if self.mesh and not self.layout:
            raise UserError("mesh: add layout=NAME")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Scores a run: python -m score RUN key=value

      python -m score runs/a tokens=1e6

    Exit codes: 0 done.
    """

    run: Path = positional("RUN")
    """A run folder. Or another."""
    method: Literal["mean", "median"] = "mean"
    """How."""
    tokens: int | None = argument(None, least=1)
    """At most so many tokens."""
    mfu: float = argument(0.4, above=0, most=1)
    """The part of the peak."""
    rate: float | None = argument(None, above=0)
    """How fast."""
    out: Path = argument(shown="FILE")
    """The file that is written. It is JSON."""
    stop: tuple[str, ...] = argument(repeated=True)
    """Ends the text."""
    layers: tuple[int, ...] | None = None
    """Only these layers."""
    dry_run: bool = flag("dry-run")
    """Only shows what would be done."""
    data: Pairs = passed_on(lambda name: name.startswith("data."), "data.KEY=VALUE")
    """The corpus."""
    given: Pairs = in_order()
    place: Place = part(Place, without=("step",))


NEEDED = ("runs/a", "out=x.json")


def read(*line: str) -> Score:
    made = read_command([*NEEDED, *line], Score)
    assert made is not None
    return made


def test_defaults():
    assert read() == Score(run=Path("runs/a"), out=Path("x.json"), given=(("out", "x.json"),))


def test_every_kind_of_argument():
    made = read(
        "tokens=5e9",
        "stop=b",
        "mfu=0.5",
        "data.source=b=c",
        "stop=a,b",
        "layers=0,5",
        "--dry-run",
        "data.x=1",
        "layout=fsdp",
        "mesh.data=-1",
    )
    assert (made.tokens, made.mfu, made.stop, made.layers, made.dry_run) == (
        5_000_000_000,
        0.5,
        ("b", "a,b"),
        (0, 5),
        True,
    )
    assert made.data == (("data.source", "b=c"), ("data.x", "1"))
    assert made.place == Place(layout="fsdp", mesh={"data": -1})
    assert [name for name, _ in made.given] == [
        "out",
        "tokens",
        "stop",
        "mfu",
        "data.source",
        "stop",
        "layers",
        "data.x",
        "layout",
        "mesh.data",
    ]


MISTAKES = {
    "tokens=0": "tokens=0: must be a whole number, at least 1",
    "tokens=1.5": "tokens=1.5: must be a whole number",
    "tokens=x": "tokens=x: must be a whole number",
    "mfu=1.5": "mfu=1.5: must be a number, above 0 and at most 1",
    "mfu=nan": "mfu=nan: must be a number",
    "rate=inf": "rate=inf: must be a number, above 0",
    "method=meen": "did you mean 'mean'?",
    "tokenz=3": "tokenz=3: there is no key 'tokenz'; did you mean 'tokens'?",
    "step=3": "there is no key 'step'",
    "tokens=1 tokens=2": "tokens=2: tokens is given twice",
    "layers=a,b": "layers=a,b: must be whole numbers with commas between them",
    "mesh.data=-2 layout=fsdp": "mesh.data=-2: must be a whole number, at least -1",
    "mesh.data=2": "add layout=NAME",
    "mesh=2": "there is no key 'mesh'",
    "--dry-rnu": "did you mean '--dry-run'?",
    "runs/b": "runs/b: unexpected extra word; this command takes RUN",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line):
    with pytest.raises(UserError) as error:
        read(*line.split())
    assert MISTAKES[line] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["out=x.json"], "RUN is missing: A run folder"),
        (["runs/a"], "out=FILE is missing: The file that is written"),
        (["runs/a", "out="], "out=FILE is missing: The file that is written"),
    ],
)
def test_what_is_missing_is_named_with_what_it_is(line, says):
    with pytest.raises(UserError) as error:
        read_command(line, Score)
    assert str(error.value) == says


def test_a_command_without_folders_says_that_words_are_no_keys():
    with pytest.raises(UserError, match="runs: is no key=value; write key=value, as in layout=runs"):
        read_command(["runs"], Place)


def test_folder_with_an_equals_sign_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    made = read_command(["lr=0.1", "out=x.json"], Score)
    assert made is not None
    assert made.run == Path("lr=0.1")


HELP = """\
Scores a run: python -m score RUN key=value

  python -m score runs/a tokens=1e6

RUN                 A run folder. Or another. (required)
method=NAME         How. One of mean, median. (default: mean)
tokens=N            At most so many tokens.
mfu=X               The part of the peak. (default: 0.4)
rate=X              How fast.
out=FILE            The file that is written. It is JSON. (required)
stop=TEXT           Ends the text.
layers=N,N,...      Only these layers.
--dry-run           Only shows what would be done.
data.KEY=VALUE      The corpus.
layout=NAME         The layout. One of fsdp, tensor.
mesh.AXIS=N         The size of an axis.

--help              this text

Exit codes: 0 done.
"""


@pytest.mark.parametrize("line", [[], ["--help"], ["runs/a", "-h", "nonsense=1"]])
def test_help_is_made_of_the_docstrings(line, capsys):
    assert read_command(line, Score) is None
    assert capsys.readouterr().out == HELP


def test_choices_are_asked_for_when_needed():
    @dataclass(frozen=True)
    class Pick:
        name: str = arguments.argument("a", choices=lambda: ["a", "b"])

    assert read_command(["name=b"], Pick) == Pick("b")
    with pytest.raises(UserError, match="must be one of a, b"):
        read_command(["name=c"], Pick)
