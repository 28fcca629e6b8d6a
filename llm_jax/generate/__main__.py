"""Continues prompts with a model: python -m llm_jax.generate RUN_OR_FOLDER prompt="..." key=value ...

  python -m llm_jax.generate runs/quickstart/default prompt="def main(" temperature=0.8 top_k=50
  python -m llm_jax.generate runs/quickstart/default prompts=prompts.txt max_tokens=100 json=out.jsonl
  python -m llm_jax.generate model/ prompt="Once" layout=fsdp_tensor mesh.tensor=2 dtype=bfloat16

RUN_OR_FOLDER       a run folder or a Hugging Face model folder
prompt=TEXT         text to be continued, from the start of a document; repeatable. Without a prompt: the start of a document
ids=1,17,5          a prompt as token ids, used as they are (no BOS is added). The only kind of prompt for a model without a tokenizer
prompts=FILE        a file with one prompt a line; in a .jsonl file each line has "prompt" or "ids", and may have more keys:
                    {"prompt": "a", "seed": 3, "stop": ["b"]}

max_tokens=N        maximum tokens of each continuation (256)
temperature=X       logits are divided by it (1); 0: always the most likely token
top_k=N             draw from the N most likely tokens (0: all)
top_p=X             draw from the most likely tokens that together have this probability (1: all)
min_p=X             draw from tokens at least this times as likely as the most likely one (0: all)
repetition_penalty=X  above 1: tokens of the prompt and the continuation so far become less likely (1: off)
stop=TEXT           end the text before this string; repeatable; \\n is a line end
seed=N              seed of the first prompt; the next ones have N + 1, ... (0)
logprobs=N          print each token with its log-probability and the N most likely tokens
json=FILE           write one JSON object a line for each prompt: text, tokens, logprobs, why it ended

slots=N             prompts that run at once; others wait (as many as there are, up to 8)
layout=NAME, mesh.AXIS=N   where the weights live (one device). With a pipeline, stages hold weights, which are gathered layer by layer
dtype=NAME          of weights and computation: float32, bfloat16 (as the model was trained)
step=N              the checkpoint (the newest)

  --help            this text

Texts go to stdout as their tokens come (several prompts one after the other). Everything else goes to stderr: what is compiled, and at the
end tokens/s and the time to the first token. Exit codes: 0 done, 2 a mistake in the command line (one line names it), 130 Ctrl-C,
141 stdout was closed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any, get_type_hints

from llm_jax.core.command import input_text, output_file, run_command
from llm_jax.core.errors import UserError, nearest, require
from llm_jax.generate.request import Request, Result

if TYPE_CHECKING:
    from llm_jax.pretrained.model import PretrainedModel

REQUEST_KEYS = tuple(f.name for f in dataclasses.fields(Request) if f.name not in ("prompt", "ids", "stop"))
KEYS = (*REQUEST_KEYS, "prompts", "json", "slots")
REPEATED = ("prompt", "ids", "stop")
MOST_SLOTS = 8
"""Slots that are used without slots=N."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(generate, arguments)


def generate(arguments: list[str]) -> int:
    """Reads the command line, runs the engine and prints the texts. Raises UserError."""
    from llm_jax.pretrained.arguments import read_asked

    asked = read_asked(arguments, ("RUN_OR_FOLDER",), KEYS, REPEATED)
    if asked is None:
        print(__doc__)
        return 0
    requests = read_requests(asked.pairs, asked.values)
    slots = asked.whole("slots", 1) or min(len(requests), MOST_SLOTS)
    file = output_file("json", asked.values["json"]) if "json" in asked.values else None

    from llm_jax.generate.engine import Engine
    from llm_jax.generate.id_tokenizer import tokenizer_or_ids
    from llm_jax.generate.terminal import run_and_print
    from llm_jax.pretrained.model import log_to_stderr, open_model

    opened = open_model(asked.paths[0], **asked.opening)
    tokenizer = tokenizer_or_ids(opened)
    longest = max(len(request.prompt_ids(tokenizer)) + request.max_tokens for request in requests)
    warn_of_length(opened, longest)
    engine = Engine.of(opened, slots, longest, log=log_to_stderr)
    del opened  # frees its weights, which are stacked by layers; the engine has its own
    results, seconds = run_and_print(engine, requests)
    if file:
        file.write_text("".join(json.dumps(to_json(result)) + "\n" for result in results))
    log_to_stderr(speed_line(results, seconds))
    return 0


def read_requests(pairs: list[tuple[str, str]], values: dict[str, str]) -> list[Request]:
    """The requests of a command line, each checked. Prompt i has seed + i unless its line of a .jsonl file gives one."""
    hints = get_type_hints(Request)
    shared: dict[str, Any] = {key: number(key, values[key], hints[key]) for key in REQUEST_KEYS if key in values}
    stop = tuple(value.replace("\\n", "\n") for key, value in pairs if key == "stop")
    prompts: list[dict[str, Any]] = [{key: ids_of(value) if key == "ids" else value} for key, value in pairs if key != "stop"]
    if "prompts" in values:
        prompts += read_prompts(values["prompts"])
    requests = []
    for i, own in enumerate(prompts or [{}]):
        request = Request(**{**shared, "stop": stop, "seed": shared.get("seed", 0) + i, **own})
        request.check()
        requests.append(request)
    return requests


def read_prompts(path: str) -> list[dict[str, Any]]:
    """The prompts of a file as keys of `Request`: each line is a text or, in a .jsonl file, a JSON object. Raises UserError."""
    text = input_text("prompts", path)
    require(bool(text), "prompts", path, "a file with a prompt a line")
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]  # not splitlines: JSON strings may hold other line separators
    if not path.endswith(".jsonl"):
        return [{"prompt": line} for line in lines]
    hints, found = get_type_hints(Request), []
    for i, line in enumerate(lines):
        where = f"prompts={path}: line {i + 1}"
        try:
            own = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error})") from error
        if not isinstance(own, dict) or not isinstance(own.get("prompt", ""), str):
            raise UserError(f'{where}: must be an object with "prompt", {{"prompt": "text"}}')
        for key, value in own.items():
            if key not in hints:
                raise UserError(f"{where}: there is no key {key!r}; {nearest(key, hints)}")
            if key in REQUEST_KEYS:
                own[key] = number(f"{where}: {key}", json.dumps(value), hints[key])
            elif key in ("stop", "ids"):
                kind = str if key == "stop" else int
                if not isinstance(value, list) or not all(type(v) is kind for v in value):
                    raise UserError(f"{where}: {key}={value}: must be a list of {'texts' if kind is str else 'token ids'}")
                own[key] = tuple(value)
        try:
            Request(**own).check()
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        found.append(own)
    return found


def ids_of(value: str) -> tuple[int, ...]:
    """Reads comma-separated token ids. Raises UserError.

    >>> ids_of("1,17, 3")
    (1, 17, 3)
    """
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise UserError(f"ids={value}: must be token ids with commas between them") from error


def number(key: str, value: str, kind: type) -> Any:
    """Reads an int or a float. Raises UserError."""
    if kind is int:
        return whole(key, value)
    try:
        return float(value)
    except ValueError as error:
        raise UserError(f"{key}={value}: must be a number") from error


def whole(key: str, value: str) -> int:
    """Reads a whole number. Raises UserError."""
    try:
        return int(value)
    except ValueError as error:
        raise UserError(f"{key}={value}: must be a whole number") from error


def warn_of_length(opened: PretrainedModel, longest: int) -> None:
    """Prints a warning to stderr where texts may become longer than the model was trained for. longest: tokens of the longest text."""
    config, trained = opened.program.config, opened.experiment.train.sequence_length
    if config.position == "learned" and longest > config.positions:
        print(f"model.positions={config.positions}: texts end there, before the {longest} tokens that max_tokens allows", file=sys.stderr)
    elif opened.step and longest > trained:
        print(f"texts may have {longest} tokens; the model was trained on {trained} (train.sequence_length)", file=sys.stderr)


def speed_line(results: list[Result], seconds: float) -> str:
    """The last line of the command: tokens/s and the time to the first token, compilation excluded."""
    tokens = sum(len(result.tokens) for result in results)
    first = [result.seconds_to_first for result in results if result.seconds_to_first is not None]
    waited = f"first token after {first[0]:.3f} s" + (f" (the last prompt's after {max(first):.3f} s)" if len(first) > 1 else "")
    return f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s; {waited}; without compiling"


def to_json(result: Result) -> dict[str, Any]:
    """A result as an object of the json= file."""
    keys = ("text", "finished", "prompt_tokens", "tokens", "logprobs", "top", "seconds_to_first")
    request = dataclasses.asdict(result.request)
    return {**request, **{key: getattr(result, key) for key in keys}}


if __name__ == "__main__":
    sys.exit(main())
