"""The command `python -m llm_jax.generate`: continues prompts with a model."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from llm_jax.core.arguments import Pairs, argument, in_order, part, positional, read_command
from llm_jax.core.command import input_text, output_file, run_command
from llm_jax.core.config_tree import coerced
from llm_jax.core.errors import UserError, nearest, require
from llm_jax.core.files import json_line, unique
from llm_jax.core.log import log_to_stderr
from llm_jax.data.conversation import turns
from llm_jax.generate.request import Request, Result
from llm_jax.pretrained.arguments import ModelArguments

if TYPE_CHECKING:
    from llm_jax.pretrained.model import PretrainedModel

MOST_SLOTS = 8
"""Slots that are used without slots=N."""


def ids_of(key: str, value: str) -> tuple[int, ...]:
    """Token ids separated by commas. Raises UserError.

    >>> ids_of("ids", "1,17, 3")
    (1, 17, 3)
    """
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise UserError(f"{key}={value}: must be token ids with commas between them") from error


def unescaped(key: str, value: str) -> str:
    """A text of the command line, where \\n is a line end."""
    return value.replace("\\n", "\n")


@dataclass(frozen=True, kw_only=True)
class GenerateCommand:
    """Continues prompts with a model: python -m llm_jax.generate RUN_OR_FOLDER prompt="..." key=value ...

      python -m llm_jax.generate runs/quickstart/default prompt="def main(" temperature=0.8 top_k=50
      python -m llm_jax.generate runs/quickstart/default prompts=prompts.txt max_tokens=100 json=out.jsonl
      python -m llm_jax.generate model/ prompt="Once" layout=fsdp_tensor mesh.tensor=2 dtype=bfloat16

    Texts go to stdout as their tokens come (several prompts one after the other). Everything else goes to
    stderr: what is compiled, and at the end tokens/s and the time to the first token.

    Exit codes: 0 done, 2 a mistake in the command line (one line names it), 130 Ctrl-C, 141 stdout was
    closed.
    """

    folder: Path = positional("RUN_OR_FOLDER")
    """A run folder, a Hugging Face model folder or a GGUF file."""
    prompt: tuple[str, ...] = argument(repeated=True)
    """Text to be continued, from the start of a document; repeatable. Without a prompt: the start of a
    document."""
    ids: tuple[tuple[int, ...], ...] = argument(repeated=True, shown="1,17,5", read=ids_of)
    """A prompt as token ids, used as they are (no BOS is added); repeatable. The only kind of prompt for a
    model without a tokenizer."""
    chat: tuple[str, ...] = argument(repeated=True)
    """A message that the model answers, in its chat template; repeatable."""
    prompts: Path | None = argument(None, shown="FILE")
    """A file with one prompt a line; in a .jsonl file each line has "prompt", "ids" or "messages" (of a
    conversation), and may have more keys: {"prompt": "a", "seed": 3, "stop": ["b"]}."""
    request: Request = part(Request, without=("prompt", "ids", "messages", "stop"))
    stop: tuple[str, ...] = argument(repeated=True, read=unescaped)
    """Ends the text before this string; repeatable; \\n is a line end."""
    json: Path | None = argument(None, shown="FILE", read=output_file)
    """Writes one JSON object a line for each prompt: text, tokens, logprobs, why it ended."""
    slots: int | None = argument(None, least=1)
    """Prompts that run at once, the others wait; as many as there are, up to 8, if not given."""
    model: ModelArguments = part(ModelArguments)
    given: Pairs = in_order()


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(generate, arguments)


def generate(arguments: list[str]) -> int:
    """Reads the command line, runs the engine and prints the texts. Raises UserError."""
    command = read_command(arguments, GenerateCommand)
    if command is None:
        return 0
    requests = read_requests(command)
    slots = command.slots or min(len(requests), MOST_SLOTS)

    from llm_jax.generate.chat import in_template  # these import JAX, which `run_command` sets up
    from llm_jax.generate.engine import Engine
    from llm_jax.generate.id_tokenizer import tokenizer_or_ids
    from llm_jax.generate.terminal import run_and_print
    from llm_jax.pretrained.model import open_model

    opened = open_model(command.folder, **command.model.options())
    if any(request.messages for request in requests):
        requests = in_template(requests, opened)
    tokenizer = tokenizer_or_ids(opened)
    longest = max(len(request.prompt_ids(tokenizer)) + request.max_tokens for request in requests)
    warn_of_length(opened, longest)
    engine = Engine.of(opened, slots, longest, log=log_to_stderr)
    del opened  # frees its weights, which are stacked by layers; the engine has its own
    results, seconds = run_and_print(engine, requests)
    if command.json:
        command.json.write_text("".join(json.dumps(to_json(result)) + "\n" for result in results))
    log_to_stderr(speed_line(results, seconds))
    return 0


def read_requests(command: GenerateCommand) -> list[Request]:
    """The requests of a command line, each checked. Prompt i has seed + i unless its line of a .jsonl file
    gives one."""
    shared = dataclasses.replace(command.request, stop=command.stop)
    read: dict[str, Callable[[str], dict[str, Any]]] = {
        "prompt": lambda value: {"prompt": value},
        "ids": lambda value: {"ids": ids_of("ids", value)},
        "chat": lambda value: {"messages": turns(value, "chat", "user")},
    }
    prompts = [read[key](value) for key, value in command.given if key in read]
    if command.prompts:
        prompts += read_prompts(str(command.prompts))
    requests = [
        dataclasses.replace(shared, **{"seed": shared.seed + i, **own})
        for i, own in enumerate(prompts or [{}])
    ]
    for request in requests:
        request.check()
    return requests


def read_prompts(path: str) -> list[dict[str, Any]]:
    """The prompts of a file as keys of `Request`: each line is a text or, in a .jsonl file, a JSON object.
    Raises UserError."""
    text = input_text("prompts", path)
    require(bool(text), "prompts", path, "a file with a prompt a line")
    lines = [
        line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")
    ]  # not splitlines: JSON strings may hold other line separators
    ending = Path(path).suffix.lower()
    if ending in (".json", ".csv", ".tsv"):
        raise UserError(f"prompts={path}: must be text with a prompt a line, or .jsonl with an object a line")
    if ending not in (".jsonl", ".ndjson"):
        return [{"prompt": line} for line in lines]
    hints, found = get_type_hints(Request), []
    for i, line in enumerate(lines):
        where = f"prompts={path}: line {i + 1}"
        if not line.strip():
            continue
        try:
            own = json_line(line, path)
            json.loads(line, object_pairs_hook=unique)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}") from error
        if not isinstance(own, dict) or not isinstance(own.get("prompt", ""), str):
            raise UserError(f'{where}: must be an object with "prompt", {{"prompt": "text"}}')
        for key, value in own.items():
            if key not in hints:
                raise UserError(f"{where}: there is no key {key!r}; {nearest(key, hints)}")
            if key == "messages":
                own[key] = messages_of(value, where)
            elif key not in ("prompt", "stop", "ids"):
                own[key] = coerced(f"{where}: {key}", json.dumps(value), hints[key])
            elif key != "prompt":
                kind = str if key == "stop" else int
                if not isinstance(value, list) or not all(type(v) is kind for v in value):
                    raise UserError(
                        f"{where}: {key}={value}: must be a list of {'texts' if kind is str else 'token ids'}"
                    )
                own[key] = tuple(value)
        try:
            Request(**own).check()
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        found.append(own)
    require(bool(found), "prompts", path, "a file with a prompt a line")
    return found


def messages_of(value: Any, where: str) -> tuple[Any, ...]:
    """The turns of a conversation in a prompt file. Raises UserError, naming `where`, for anything else."""
    try:
        return turns(value, "messages", "user")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def warn_of_length(opened: PretrainedModel, longest: int) -> None:
    """Prints a warning to stderr where texts may become longer than the model was trained for. longest:
    tokens of the longest text."""
    config, trained = opened.program.config, opened.experiment.train.sequence_length
    if config.position == "learned" and longest > config.positions:
        print(
            f"model.positions={config.positions}: texts end there, before the {longest} tokens that "
            "max_tokens allows",
            file=sys.stderr,
        )
    elif opened.step and longest > trained:
        print(
            f"texts may have {longest} tokens; the model was trained on {trained} (train.sequence_length)",
            file=sys.stderr,
        )


def speed_line(results: list[Result], seconds: float) -> str:
    """The last line of the command: tokens/s and the time to the first token, compilation excluded."""
    tokens = sum(len(result.tokens) for result in results)
    first = [result.seconds_to_first for result in results if result.seconds_to_first is not None]
    waited = f"first token after {first[0]:.3f} s" + (
        f" (the last prompt's after {max(first):.3f} s)" if len(first) > 1 else ""
    )
    return f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s; {waited}; without compiling"


def to_json(result: Result) -> dict[str, Any]:
    """A result as an object of the json= file."""
    keys = ("text", "finished", "prompt_tokens", "tokens", "logprobs", "top", "seconds_to_first")
    request = dataclasses.asdict(result.request)
    return {**request, **{key: getattr(result, key) for key in keys}}


if __name__ == "__main__":
    sys.exit(main())
