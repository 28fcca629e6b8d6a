"""Templates are filled in with what they are given: escaped in HTML, as it is in scripts, and nothing may be
missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

from llm_jax.core.templates import environment, render

PACKAGE = "package_of_templates"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder of an importable package with nothing in it yet."""
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    environment.cache_clear()
    yield folder
    environment.cache_clear()
    sys.modules.pop(PACKAGE)


def test_values_are_escaped_in_a_page_and_left_alone_in_a_script(package):
    (package / "page.html.jinja").write_text("<p>{{ name }}</p>\n")
    (package / "job.sh.jinja").write_text("echo {{ name }}\n")
    name = "<b>&\"'"
    assert render(PACKAGE, "page.html.jinja", name=name) == "<p>&lt;b&gt;&amp;&#34;&#39;</p>\n"
    assert render(PACKAGE, "job.sh.jinja", name=name) == f"echo {name}\n"


def test_powers_are_raised_and_the_rest_of_the_text_escaped(package):
    (package / "page.html.jinja").write_text("{{ text | raised }}")
    assert (
        render(PACKAGE, "page.html.jinja", text="<i>C^0.5 & x^-2")
        == "&lt;i&gt;C<sup>0.5</sup> &amp; x<sup>-2</sup>"
    )


def test_a_value_that_is_missing_is_an_error_and_not_an_empty_text(package):
    (package / "job.sh.jinja").write_text("#SBATCH --time={{ minutes }}\n")
    with pytest.raises(jinja2.UndefinedError, match="minutes"):
        render(PACKAGE, "job.sh.jinja")


def test_lines_of_the_templates_logic_leave_no_line_behind(package):
    (package / "job.sh.jinja").write_text(
        "a\n{% if account %}\n  {% for x in account %}\n{{ x }}\n  {% endfor %}\n{% endif %}\nb\n"
    )
    assert render(PACKAGE, "job.sh.jinja", account="cd") == "a\nc\nd\nb\n"
