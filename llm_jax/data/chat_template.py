"""Chat templates: a conversation becomes the text that a model is trained on and prompted with.

A template is Jinja2, run in a sandbox. It is data of whoever made the model: it can't change what it is
given, or reach anything but the conversation. What a model is trained to write is marked by
`{% generation %}` ... `{% endgeneration %}`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from llm_jax.core.command import input_text
from llm_jax.core.errors import UserError
from llm_jax.core.files import inside, read_json, user_path, write_atomic
from llm_jax.data.config import ChatConfig, TokenizerConfig

Message = Mapping[str, Any]
"""A turn of a conversation: "role", "content" and whatever else its template reads ("tool_calls",
"reasoning_content", ...)."""

BEGIN, END = "\ufdd0", "\ufdd1"
"""Mark what the model is trained to write, in the text that a template makes: code points that Unicode
reserves for such uses, and that no text contains."""
PLAIN = "\ufdd2"
"""Stands inside of what looks like a control token and is text."""
RESERVED = (BEGIN, END, PLAIN)


class Rendered(NamedTuple):
    """What a template makes of a conversation."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """(begin, end) in `text`, in characters: what the model is trained to write; empty where the template
    doesn't mark it."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja2 template of conversations, with the control tokens that it may write."""

    source: str
    name: str = "default"
    """Where it is from, for errors."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """What it can read beside the conversation: bos_token, eos_token, ..."""
    with_tools: str = ""
    """The template of conversations with tools, where that is another one."""
    date: str = ""
    """The day, YYYY-MM-DD, that it is told by `strftime_now`; empty: an error, where it asks for the day."""

    def for_tools(self, tools: Sequence[Any] | None) -> ChatTemplate:
        """The template of a conversation with these tools, which transformers chooses like this too."""
        if tools is None or not self.with_tools:
            return self
        return dataclasses.replace(self, source=self.with_tools, with_tools="")

    def strftime_now(self, form: str) -> str:
        """The day in a format of strftime. Raises UserError where no day is given."""
        if not self.date:
            raise UserError(
                f"chat template {self.name}: it writes today's date, so a run would have other tokens "
                "when it is resumed. Give it a day: chat.date=2026-01-31"
            )
        return datetime.fromisoformat(self.date).strftime(form)

    @property
    def marks_generation(self) -> bool:
        """Whether it says by itself what the model writes."""
        return "endgeneration" in self.source

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        **more: Any,
    ) -> Rendered:
        """The text of a conversation. add_generation_prompt: end with what an answer begins after.

        Raises UserError for a conversation that the template refuses, or can't read.
        """
        template = self.for_tools(tools)
        try:
            marked = compiled(template.source).render(
                **{"strftime_now": self.strftime_now, **self.variables, **more},
                messages=messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
            )
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"chat template {self.name}: line {error.lineno}: {error.message}") from error
        except (jinja2.TemplateError, *FAULTS) as error:
            raise UserError(f"chat template {self.name}: {first_line(error)}") from error
        return without_marks(marked)


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def without_marks(marked: str) -> Rendered:
    """The text without `BEGIN` and `END`, and where they were."""
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    length, begin = 0, None
    rest = marked
    while True:
        at = min((i for i in (rest.find(BEGIN), rest.find(END)) if i >= 0), default=-1)
        if at < 0:
            break
        parts.append(rest[:at])
        length += at
        if rest[at] == BEGIN:
            begin = length
        elif begin is not None:
            spans.append((begin, length))
            begin = None
        rest = rest[at + 1 :]
    return Rendered("".join([*parts, rest]), tuple(span for span in spans if span[0] < span[1]))


class GenerationTag(jinja2.ext.Extension):
    """The tag `{% generation %}`: puts `BEGIN` and `END` around its body."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja2 declares it)

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        """The nodes that stand for the tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        mark = lambda text: jinja2.nodes.Output([jinja2.nodes.TemplateData(text)], lineno=line)  # noqa: E731
        return [mark(BEGIN), *body, mark(END)]


CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{ message['content'] + '<|im_end|>' }}{%- endgeneration -%}"
    "{%- else -%}{{ message['content'] + '<|im_end|>' }}{%- endif -%}{{ '\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
"""ChatML, as OpenAI described it in 2023, which Qwen, SmolLM2 and many others use."""
BUILT_IN = {"chatml": CHATML}
FILE = "chat_template.jinja"
"""The file of a model's template in its folder. Older folders have it in their tokenizer_config.json."""
MORE_FILES = "additional_chat_templates"
"""The folder in it with other templates, each a file NAME.jinja."""
CONFIG = "tokenizer_config.json"
DEFAULT, WITH_TOOLS = "default", "tool_use"
"""Names of templates: what is used unless another is asked for, and for conversations with tools."""
FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, MemoryError, RecursionError)
"""What a template raises that doesn't suit a conversation, or asks for too much."""
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def find_template(
    name: str, tokenizer: TokenizerConfig, key: str = "chat.template", date: str = "", remedy: str = ""
) -> ChatTemplate:
    """The template that `key`=name asks for: one that is built in, one of several in the tokenizer's folder,
    a file, or (empty) the folder's own.

    tokenizer: `file` is its folder, or a file in it, whose control tokens the template can write. date: see
    `ChatTemplate`. remedy: what to do where the folder has none. Raises UserError where there is no such
    template.
    """
    folder = user_path(tokenizer.file) if tokenizer.file else None
    folder = folder.parent if folder is not None and folder.is_file() else folder
    config = read_json(inside(folder, CONFIG, key)) if folder is not None else {}
    variables = {token: text_of_token(config[token]) for token in SPECIAL if config.get(token) is not None}
    own = named_templates(folder, config) if folder is not None else {}
    if found := BUILT_IN.get(name) or own.get(name):
        return ChatTemplate(found, name, variables, date=date)
    if name:
        known = f" (and {folder} has the templates {', '.join(own)})" if own else ""
        if not user_path(name).exists():
            raise UserError(f"{key}={name}: no such file{known}")
        return ChatTemplate(input_text(key, name), name, variables, date=date)
    remedy = remedy or f"give {key}=chatml, or a file with one"
    if folder is None:
        raise UserError(f"{key}=: the tokenizer is trained here and has no chat template; {remedy}")
    if not own:
        raise UserError(
            f"{key}=: {folder} has no {FILE}, and no chat_template in its tokenizer_config.json; {remedy}"
        )
    if DEFAULT not in own:
        raise UserError(f"{key}=: {folder} has several templates; choose one of {', '.join(own)}")
    return ChatTemplate(own[DEFAULT], str(folder), variables, own.get(WITH_TOOLS, ""), date)


def copy_of_template(name: str, folder: Path) -> str:
    """In place of `chat.template`=name, for a run that has begun: the copy in the folder of its tokenizer
    (`save_template`), since a file may be gone or changed.
    """
    copied = name and name not in BUILT_IN and (folder / FILE).is_file()
    return str(folder / FILE) if copied else name


def save_template(chat: ChatConfig, tokenizer: TokenizerConfig, folder: Path) -> None:
    """Writes the template of a run beside the tokenizer that is trained with it, unless its files have it.

    Whatever reads the folder finds it: `from=`, generation, an export.
    """
    if chat.template or not named_templates(folder, read_json(folder / CONFIG)):
        write_atomic(folder / FILE, find_template(chat.template, tokenizer).source)


def named_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a model's folder, by name: a single one is the `default`.

    config: its tokenizer_config.json. Files are preferred, as transformers does.
    """
    found = config.get("chat_template")
    named = {"default": found}
    if isinstance(found, list):
        named = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
    own = {name: source for name, source in named.items() if isinstance(source, str)}
    files = {path.stem: path for path in sorted((folder / MORE_FILES).glob("*.jinja"))}
    files |= {DEFAULT: folder / FILE} if (folder / FILE).is_file() else {}
    for name, path in files.items():
        own[name] = input_text(
            "chat template", str(inside(folder, str(path.relative_to(folder)), "chat template"))
        )
    return own


def text_of_token(token: Any) -> Any:
    """A control token's text: tokenizer_config.json has it as it is, or in an object that describes it."""
    return token.get("content") if isinstance(token, dict) else token


@functools.lru_cache(maxsize=64)
def compiled(source: str) -> jinja2.Template:
    """The compiled template. The options are those that published templates are written for."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    return environment.from_string(source)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as templates expect it: nothing is escaped for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def refuse(message: str) -> None:
    """What a template calls for a conversation that it has no form for."""
    raise jinja2.TemplateError(message)
