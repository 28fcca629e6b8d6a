"""docs/architecture.md is the code's structure of today: its picture has the contract's rooms, its table
classes that there are.
"""

from __future__ import annotations

import itertools
import re

from tests.conftest import ROOT
from tools.rooms import order_of_rooms

TEXT = (ROOT / "docs" / "architecture.md").read_text()


def test_the_picture_has_the_rooms_of_the_contract_in_their_order():
    (picture,) = re.findall(r"```mermaid\n(.*?)```", TEXT, re.S)
    floors = order_of_rooms()
    assert re.findall(r"^  (\w+)\[", picture, re.M) == [room for floor in floors for room in floor]
    arrows = {}
    for line in re.findall(r"^  (.*-->.*)$", picture, re.M):
        steps = [tuple(re.findall(r"\w+", step)) for step in line.split("-->")]
        arrows |= dict(itertools.pairwise(steps))
    assert arrows == dict(itertools.pairwise(floors))


def test_every_name_of_the_table_is_defined_where_it_says():
    rows = re.findall(r"^\| (`.*?`) \| `(\S+?)` \|", TEXT, re.M)
    assert len(rows) > 20
    for names, place in rows:
        path = ROOT / "llm_jax" / place
        text = "\n".join(file.read_text() for file in (path.glob("*.py") if path.is_dir() else [path]))
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^class {name}\b", text, re.M), f"{name} in {place}"


def test_files_and_functions_of_the_way_of_a_command_are_there():
    (way,) = re.findall(r"## The way of a command\n(.*?)\n## ", TEXT, re.S)
    for line in re.findall(r"^\d+\. (.*?)(?=^\d+\. |\n\n)", way, re.S | re.M):
        files = re.findall(r"`([\w/]+\.py)`", line)
        assert files, line
        assert all((ROOT / "llm_jax" / file).is_file() for file in files), line
    assert len(re.findall(r"^\d+\. ", way, re.M)) == 10
