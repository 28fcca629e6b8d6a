"""Texts made from Jinja2 templates: pages and scripts. A template lies in the package that fills it in, as
NAME.html.jinja or NAME.sh.jinja."""

from __future__ import annotations

import functools
import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


def render(package: str, name: str, /, **values: object) -> str:
    """The template `name` of a package, filled in.

    In *.html.jinja all values are escaped, and `{{ text | raised }}` raises powers too; in all others they
    are as they are: a value that a shell reads is quoted by who gives it. Raises jinja2.UndefinedError where
    the template wants a value that isn't given.
    """
    return environment(package).get_template(name).render(**values)


@functools.cache
def environment(package: str) -> Environment:
    """The Jinja environment of a package's templates."""
    made = Environment(
        loader=PackageLoader(package, ""),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["raised"] = raised
    return made


def raised(text: object) -> Markup:
    """Text as HTML has it, powers raised.

    >>> print(raised("N* < C^0.466."), raised("B/D^β"))
    N* &lt; C<sup>0.466</sup>. B/D<sup>β</sup>
    """
    return Markup(re.sub(r"\^(-?\d+(?:\.\d+)?|\w+)", r"<sup>\1</sup>", str(escape(text))))
