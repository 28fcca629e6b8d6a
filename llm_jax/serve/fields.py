"""Reads the JSON body of a request into a frozen dataclass: types are checked, and what is unknown or can't
be done is an error. Nothing is ignored in silence."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from llm_jax.core.config_tree import union_members
from llm_jax.core.errors import UserError, nearest
from llm_jax.core.files import unique
from llm_jax.data.conversation import check_surrogates
from llm_jax.serve.errors import ApiError

Body = TypeVar("Body")

HARMLESS = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls",
)  # fmt: skip
"""Fields without any effect on an answer, which are accepted."""
NOT_HERE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "logit_bias": (lambda value: value == {}, "a bias of logits is not supported yet"),
    "frequency_penalty": (lambda value: value == 0, "is not supported yet; repetition_penalty is"),
    "presence_penalty": (lambda value: value == 0, "is not supported yet; repetition_penalty is"),
    "response_format": (
        lambda value: value == {"type": "text"}, "only {\"type\": \"text\"} is supported yet",
    ),
    "tools": (lambda value: value == [], "calls of tools are not supported yet"),
    "tool_choice": (lambda value: value in ("none", "auto"), "calls of tools are not supported yet"),
    "functions": (lambda value: value == [], "calls of functions are not supported yet"),
    "function_call": (lambda value: value in ("none", "auto"), "calls of functions are not supported yet"),
    "modalities": (lambda value: value == ["text"], "the model writes text only"),
    "audio": (lambda value: False, "the model writes text only"),
    "prediction": (lambda value: False, "predicted outputs are not supported"),
    "web_search_options": (lambda value: False, "the server uses no network"),
    "reasoning_effort": (lambda value: False, "is not supported"),
    "verbosity": (lambda value: False, "is not supported"),
    "suffix": (lambda value: value == "", "text between two texts is not supported"),
    "ignore_eos": (lambda value: value is False, "is not supported yet"),
    "chat_template": (lambda value: False, "the template is the model's own, never a request's"),
    "chat_template_kwargs": (lambda value: value == {}, "is not supported yet"),
    "guided_json": (lambda value: False, "constrained output is not supported yet"),
    "guided_regex": (lambda value: False, "constrained output is not supported yet"),
    "guided_choice": (lambda value: False, "constrained output is not supported yet"),
    "guided_grammar": (lambda value: False, "constrained output is not supported yet"),
    "structured_outputs": (lambda value: False, "constrained output is not supported yet"),
}  # fmt: skip
"""Fields of OpenAI and others that this server lacks: which values ask for nothing, and why others are an
error."""


def parse_body(content: bytes) -> dict[str, Any]:
    """The object of a request's body. Raises ApiError for anything else."""
    try:
        body = json.loads(content, object_pairs_hook=unique, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is no valid JSON: {str(error)[:200]}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(400, f"The body must be a JSON object, and is {kind_of(body)}.", code="invalid_json")
    try:
        check_surrogates(body)
    except UserError as error:
        raise ApiError(400, f"The body {error}.", code="invalid_json") from error
    return body


def no_number(name: str) -> None:
    """Raises ValueError for NaN and Infinity, which are no JSON."""
    raise ValueError(f"{name} is no JSON number")


def read_fields(body: Mapping[str, Any], kind: type[Body], where: str = "") -> Body:
    """The body as a dataclass. A field that is null is as if it weren't given.

    where: what stands before the names of fields in errors ("stream_options."). Raises ApiError (400).
    """
    hints, found = get_type_hints(kind), {}
    for name, value in body.items():
        path = f"{where}{name}"
        if name in hints:
            if value is not None:
                found[name] = checked(value, hints[name], path)
        elif where or (name not in HARMLESS and name not in NOT_HERE):
            raise ApiError(400, f"{path}: there is no such field; {nearest(name, hints)}", param=path)
        elif name in NOT_HERE and value is not None:
            asks_nothing, reason = NOT_HERE[name]
            if not asks_nothing(value):
                raise ApiError(400, f"{name}: {reason}. Leave it out.", param=name, code="unsupported")
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    for field in fields:
        if field.name not in found and (field.default, field.default_factory) == missing:
            raise ApiError(400, f"{where}{field.name}: is missing.", param=f"{where}{field.name}")
    return kind(**found)


def checked(value: Any, hint: Any, path: str) -> Any:
    """A value of JSON as the type of its field; lists become tuples. Raises ApiError."""
    for member in union_members(hint):
        if fits(value, member):
            return converted(value, member, path)
    raise ApiError(400, f"{path}: must be {in_words(hint)}, and is {kind_of(value)}.", param=path)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a type. (true is no number, and 1.0 no integer.)"""
    if hint is Any:
        return True
    if dataclasses.is_dataclass(hint) or get_origin(hint) is dict:
        return isinstance(value, dict)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return isinstance(value, list) and all(fits(one, item) for one in value)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value)
    return hint in (int, str) and isinstance(value, hint)


def converted(value: Any, hint: Any, path: str) -> Any:
    """A value that fits, as its type."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return read_fields(value, hint, f"{path}.")
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return tuple(converted(one, item, path) for one in value)
    return float(value) if hint is float else value


def in_words(hint: Any) -> str:
    """A type for an error."""
    members = [member for member in union_members(hint) if member is not type(None)]
    return " or ".join(
        f"a list of {many(get_args(member)[0])}"
        if get_origin(member) is tuple
        else ONE.get(member, "an object")
        for member in members
    )


ONE: dict[Any, str] = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
MANY: dict[Any, str] = {int: "integers", float: "numbers", str: "strings"}
"""Types for errors."""


def many(item: Any) -> str:
    """The items of a list, for an error.

    >>> many(tuple[int, ...])
    'lists of integers'
    """
    if get_origin(item) is tuple:
        return f"lists of {many(get_args(item)[0])}"
    return MANY.get(item, "objects")


def kind_of(value: Any) -> str:
    """What a value of JSON is, for an error."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"the string {value[:40]!r}"
        case int() | float():
            return f"the number {str(value)[:40]}"
        case Mapping():
            return "an object"
        case Sequence():
            return "a list" + ("" if value else " without items")
    return type(value).__name__
