"""Lets a model write: python -m llm_jax.generate RUN_OR_FOLDER prompt="..." key=value ...

  python -m llm_jax.generate runs/quickstart/default prompt="def main(" temperature=0.8 top_k=50
  python -m llm_jax.generate runs/quickstart/default prompts=prompts.txt max_tokens=100 json=out.jsonl
  python -m llm_jax.generate model/ prompt="Once" layout=fsdp_tensor mesh.tensor=2 dtype=bfloat16

RUN_OR_FOLDER       a run folder, or a folder with a model of Hugging Face's
prompt=TEXT         what is continued, from the start of a document; may be given several times. None: the start of a document
ids=1,17,5          a prompt as token ids, taken as they are (no BOS is put before them); of a model without a tokenizer all prompts are such
prompts=FILE        a prompt a line; of a .jsonl file each line's "prompt" or "ids", with more keys: {"prompt": "a", "seed": 3, "stop": ["b"]}

max_tokens=N        tokens of each continuation, at most (256)
temperature=X       logits are divided by it (1); 0: always the most likely token
top_k=N             only the N most likely tokens (0: all)
top_p=X             only the most likely tokens that together have this probability (1: all)
min_p=X             only tokens at least this times as likely as the most likely one (0: all)
repetition_penalty=X  above 1: tokens that were there before become less likely (1: off)
stop=TEXT           the text ends before it; may be given several times; \\n is a line end
seed=N              of the first prompt; the next ones have N + 1, ... (0)
logprobs=N          prints each token with its log-probability and the N most likely ones
json=FILE           writes a line of JSON for each prompt: text, tokens, logprobs, why it ended

slots=N             prompts that run at once, others wait (as many as there are, at most 8)
layout=NAME, mesh.AXIS=N   where the weights live (one device); a pipeline's stages hold weights, which are gathered layer by layer
dtype=NAME          of weights and what is computed: float32, bfloat16 (as the model was trained)
step=N              the checkpoint (the newest)

  --help            this text

The text goes to stdout as it comes (of several prompts one after the other), all else to stderr: what is compiled, and in the end tokens/s
and the time to the first token. Exit codes: 0 done, 2 a mistake in what was asked (one line says which), 130 Ctrl-C, 141 nobody reads stdout
any more.
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

OF_REQUEST = tuple(f.name for f in dataclasses.fields(Request) if f.name not in ("prompt", "ids", "stop"))
KEYS = (*OF_REQUEST, "prompts", "json", "slots")
REPEATED = ("prompt", "ids", "stop")
MOST_SLOTS = 8


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(generate, arguments)


def generate(arguments: list[str]) -> int:
    """The same, with UserErrors raised."""
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
    from llm_jax.generate.terminal import write
    from llm_jax.pretrained.model import log_to_stderr, open_model

    opened = open_model(asked.paths[0], **asked.opening)
    texts = tokenizer_or_ids(opened)
    longest = max(len(request.prompt_ids(texts)) + request.max_tokens for request in requests)
    say_limits(opened, longest)
    engine = Engine(opened, slots, longest, log=log_to_stderr)
    del opened  # its weights are stacked by layers; the engine has its own
    results, seconds = write(engine, requests)
    if file:
        file.write_text("".join(json.dumps(to_json(result)) + "\n" for result in results))
    log_to_stderr(speed(results, seconds))
    return 0


def read_requests(pairs: list[tuple[str, str]], values: dict[str, str]) -> list[Request]:
    """What is asked for, each checked."""
    hints = get_type_hints(Request)
    shared: dict[str, Any] = {key: number(key, values[key], hints[key]) for key in OF_REQUEST if key in values}
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
    """The prompts of a file: lines of text, or of JSON with keys of `Request`."""
    text = input_text("prompts", path)
    require(bool(text), "prompts", path, "a file with a prompt a line")
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]  # and at no other character: JSON's texts may have them
    if not path.endswith(".jsonl"):
        return [{"prompt": line} for line in lines]
    hints, found = get_type_hints(Request), []
    for i, line in enumerate(lines):
        said = f"prompts={path}: line {i + 1}"
        try:
            own = json.loads(line)
        except ValueError as error:
            raise UserError(f"{said}: not JSON ({error})") from error
        if not isinstance(own, dict) or not isinstance(own.get("prompt", ""), str):
            raise UserError(f'{said}: must be an object with "prompt", {{"prompt": "text"}}')
        for key, value in own.items():
            if key not in hints:
                raise UserError(f"{said}: there is no key {key!r}; {nearest(key, hints)}")
            if key in OF_REQUEST:
                own[key] = number(f"{said}: {key}", json.dumps(value), hints[key])
            elif key in ("stop", "ids"):
                kind = str if key == "stop" else int
                if not isinstance(value, list) or not all(type(v) is kind for v in value):
                    raise UserError(f"{said}: {key}={value}: must be a list of {'texts' if kind is str else 'token ids'}")
                own[key] = tuple(value)
        try:
            Request(**own).check()
        except UserError as error:
            raise UserError(f"{said}: {error}") from error
        found.append(own)
    return found


def ids_of(value: str) -> tuple[int, ...]:
    """Token ids with commas between them.

    >>> ids_of("1,17, 3")
    (1, 17, 3)
    """
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise UserError(f"ids={value}: must be token ids with commas between them") from error


def number(key: str, value: str, kind: type) -> Any:
    """A value as a number; UserError if it is none."""
    if kind is int:
        return whole(key, value)
    try:
        return float(value)
    except ValueError as error:
        raise UserError(f"{key}={value}: must be a number") from error


def whole(key: str, value: str) -> int:
    """A value as a whole number; UserError if it is none."""
    try:
        return int(value)
    except ValueError as error:
        raise UserError(f"{key}={value}: must be a whole number") from error


def say_limits(opened: PretrainedModel, longest: int) -> None:
    """Says where the model is asked for more than it knows."""
    config, trained = opened.program.config, opened.experiment.train.sequence_length
    if config.position == "learned" and longest > config.positions:
        print(f"model.positions={config.positions}: there the text ends, though {longest} tokens may be asked for", file=sys.stderr)
    elif opened.step and longest > trained:
        print(f"up to {longest} tokens: more than the {trained} (train.sequence_length) that the model has ever seen", file=sys.stderr)


def speed(results: list[Result], seconds: float) -> str:
    """The last line: how fast it went."""
    tokens = sum(len(result.tokens) for result in results)
    first = [result.seconds_to_first for result in results if result.seconds_to_first is not None]
    waited = f"first token after {first[0]:.3f} s" + (f" (the last prompt's after {max(first):.3f} s)" if len(first) > 1 else "")
    return f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s; {waited}; without compiling"


def to_json(result: Result) -> dict[str, Any]:
    """A result as a line of the json file."""
    keys = ("text", "finished", "prompt_tokens", "tokens", "logprobs", "top", "seconds_to_first")
    asked = dataclasses.asdict(result.request)
    return {**asked, **{key: getattr(result, key) for key in keys}}


if __name__ == "__main__":
    sys.exit(main())
