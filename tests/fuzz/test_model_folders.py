"""Model folders of others, with anything in config.json, the index and the headers: a model or one line."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.core.errors import UserError
from llm_jax.pretrained.source import open_source

FIXTURES = Path(__file__).parent.parent / "huggingface" / "fixtures"
FAMILIES = ("llama", "gemma3", "deepseek_v3", "gpt2", "qwen3_moe_step")
NASTY = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        2**63,
        1e400,
        -0.5,
        float("nan"),
        "",
        "a",
        "../x",
        "/etc/passwd",
        [],
        {},
        [1],
        {"a": 1},
        "silu",
    ]
)


def paths(tree: Any, at: tuple = ()) -> list[tuple]:
    """The places of all values in a tree of JSON."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in items for place in [(*at, key), *paths(value, (*at, key))]]


def changed(tree: Any, data: st.DataObject) -> Any:
    """The tree with one to three values replaced, or keys taken away."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 3))):
        places = paths(tree)
        if not places:
            return tree
        *to, key = data.draw(st.sampled_from(places))
        inner = tree
        for step in to:
            inner = inner[step]
        if isinstance(inner, dict) and data.draw(st.booleans()):
            del inner[key]
        else:
            inner[key] = copy.deepcopy(data.draw(NASTY))
    return tree


def opens_or_refuses(folder: Path) -> None:
    try:
        source = open_source(folder)
        source.experiment.model.resolved(source.experiment.model.vocab)
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> dict[str, Path]:
    """A copy of each fixture, which tests overwrite parts of."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: shutil.copytree(FIXTURES / name, folder / name)
        for name in FAMILIES
        if (FIXTURES / name).is_dir()
    }


@given(st.data())
def test_any_configuration(copies, data):
    name = data.draw(st.sampled_from(sorted(copies)))
    tree = json.loads((FIXTURES / name / "config.json").read_text())
    (copies[name] / "config.json").write_text(json.dumps(changed(tree, data)))
    opens_or_refuses(copies[name])


@given(st.data())
def test_any_index(copies, data):
    folder, name = copies["llama"], "model.safetensors.index.json"
    shutil.copy(FIXTURES / "llama" / "config.json", folder)
    tree = json.loads((FIXTURES / "llama" / name).read_text())
    (folder / name).write_text(json.dumps(changed(tree, data)))
    opens_or_refuses(folder)
    shutil.copy(FIXTURES / "llama" / name, folder)


@given(st.data())
def test_any_header(copies, data):
    folder = copies["gpt2"]
    shutil.copy(FIXTURES / "gpt2" / "config.json", folder)
    file = next(FIXTURES.joinpath("gpt2").glob("*.safetensors"))
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(changed(json.loads(content[8 : 8 + length]), data)).encode()
    size = data.draw(st.sampled_from([len(header), length, 0, 2**40, 2**64 - 1]))
    (folder / file.name).write_bytes(size.to_bytes(8, "little") + header + content[8 + length :])
    opens_or_refuses(folder)


@given(st.data())
def test_any_bytes_in_place_of_a_file(copies, data):
    folder = copies["llama"]
    for file in (FIXTURES / "llama").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    names = [
        "config.json",
        "model.safetensors.index.json",
        "generation_config.json",
        "model-00001-of-00003.safetensors",
    ]
    name = data.draw(st.sampled_from(names))
    content = data.draw(
        st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b"{}", b"null", b"\xef\xbb\xbf{}"])
    )
    (folder / name).write_bytes(content)
    opens_or_refuses(folder)
