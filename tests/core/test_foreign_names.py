"""Names and texts from elsewhere: no path leaves its folder, no JSON text ends in a traceback."""

from __future__ import annotations

import pytest

from llm_jax.core import checksums
from llm_jax.core.config_tree import read_yaml_text
from llm_jax.core.errors import UserError
from llm_jax.core.files import inside, parse_json


@pytest.fixture
def folder(tmp_path):
    """A folder with a file, beside a file that is private."""
    (tmp_path / "private").write_text("secret")
    (tmp_path / "model/sub").mkdir(parents=True)
    (tmp_path / "model/own").write_text("")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "name", ["../private", "sub/../../private", "sub/../own", "/etc/passwd", "", ".", "a\0b", "\ud800"]
)
def test_a_name_that_leaves_its_folder_is_refused(folder, name):
    with pytest.raises(UserError, match=r"index.json: names the file .*; only files inside of .* are read"):
        inside(folder, name, "index.json")


def test_a_link_that_leaves_its_folder_is_refused(folder):
    (folder / "out").symlink_to(folder.parent / "private")
    (folder / "relative").symlink_to("../private")
    (folder / "again").symlink_to("out")
    (folder / "up").symlink_to("..")
    for name in ("out", "relative", "again", "up/private"):
        with pytest.raises(
            UserError, match=f"{name}: is a symbolic link to .*private, outside of its folder"
        ):
            inside(folder, name, "index.json")


def test_links_that_stay_are_followed(folder):
    (folder / "link").symlink_to("own")
    (folder / "loop").symlink_to("loop")
    (folder.parent / "named").symlink_to(folder)  # the folder itself is the user's choice
    for name in ("own", "link", "sub/new", "loop"):
        assert inside(folder, name, "") == folder / name
        assert inside(folder.parent / "named", name, "") == folder.parent / "named" / name


def test_the_links_of_a_hub_cache_are_followed_to_its_own_blobs(tmp_path):
    """huggingface_hub keeps files under their sums, and snapshots of links to them."""
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    (snapshot / "sub").mkdir(parents=True)
    for repository in ("models--a--b", "models--c--d"):
        (tmp_path / repository / "blobs").mkdir(parents=True)
        (tmp_path / repository / "blobs/77").write_text("")
    (snapshot / "config.json").symlink_to("../../blobs/77")
    (snapshot / "sub/config.json").symlink_to("../../../blobs/77")
    assert inside(snapshot, "config.json", "").is_file()
    assert inside(snapshot / "sub", "config.json", "").is_file()
    (snapshot / "other").symlink_to(tmp_path / "models--c--d/blobs/77")
    (tmp_path / "models--a--b/blobs/out").symlink_to("/etc/hostname")
    (snapshot / "out").symlink_to("../../blobs/out")
    for name in ("other", "out"):
        with pytest.raises(UserError, match="is a symbolic link"):
            inside(snapshot, name, "")


def test_checksums_are_of_files_inside(folder):
    for name in ("../private", "/etc/hostname"):
        line = f"{checksums.file_sum(folder.parent / 'private')}  {name}\n"
        (folder / checksums.NAME).write_text(f"{line}# {checksums.text_sum(line)}\n")
        with pytest.raises(checksums.Damaged, match="only files inside of"):
            checksums.check(folder)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "Expecting"),
        (b"\xff{}", "no text in UTF-8"),
        (b"[" * 100_000, "recursion"),
        (b"1" * 5000, "4300 digits"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'[{"b": {"a": 1, "a": [1]}}]', "'a' is given twice"),
    ],
)
def test_what_is_no_json_is_one_line(text, why):
    with pytest.raises(UserError, match=rf"file.json: is (not valid JSON .*)?{why}") as error:
        parse_json(text, "file.json")
    assert "\n" not in str(error.value)


def test_json_is_read_with_a_byte_order_mark_and_with_one_value_twice():
    assert parse_json(b'\xef\xbb\xbf{"a": 1, "b": 2, "a": 1}', "") == {"a": 1, "b": 2}


BOMB = "a: &a [x, x]\n" + "".join(
    f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: !!python/object/apply:os.getpid []", "could not determine a constructor"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("a: !Own {b: 1}", "could not determine a constructor"),
        (BOMB, "an alias"),
        ("a: &a {b: *a}", "an alias"),
        ("[" * 300_000, "nested too deeply"),
        ("{a: " * 300_000, "nested too deeply"),
        ("- " * 300_000, "nested too deeply"),
    ],
    ids=["call", "name", "tag", "bomb", "loop", "lists", "tables", "lines"],
)
def test_yaml_makes_nothing_but_tables_lists_and_text(text, why):
    import yaml

    with pytest.raises(yaml.YAMLError, match=why):
        read_yaml_text(text)
    assert read_yaml_text('a: ["*", 2*3, "*b"]') == {"a": ["*", "2*3", "*b"]}
