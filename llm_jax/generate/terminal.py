"""What the command prints: prompts with their continuations, the first that isn't done as it comes, the others after it."""

from __future__ import annotations

import io
import math
import sys
import time

from llm_jax.data import Tokenizer
from llm_jax.errors import UserError
from llm_jax.generate.engine import Engine
from llm_jax.generate.request import Request, Result
from llm_jax.opened import NO_NUMBERS


def write(engine: Engine, requests: list[Request]) -> tuple[list[Result], float]:
    """Runs the requests and prints them in order: (results, seconds without those of compiling)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale says
    begun = time.perf_counter()
    ids = [engine.submit(request) for request in requests]
    arrived: dict[int, str] = dict.fromkeys(ids, "")
    heading(requests, 0, engine.tokenizer)
    now = 0
    while now < len(ids):
        try:
            events = engine.step() if engine.busy else []
        except KeyboardInterrupt:
            say("\n")  # after half a line
            raise
        for event in events:
            if math.isnan(event.logprob):
                raise UserError(f"{engine.path}: {NO_NUMBERS}")
            arrived[event.id] += event.text
        while now < len(ids):
            say(arrived[ids[now]])
            arrived[ids[now]] = ""
            result = engine.results[ids[now]]
            if result.finished is None:
                break
            ending(result, engine.tokenizer)
            now += 1
            if now < len(ids):
                heading(requests, now, engine.tokenizer)
    seconds = time.perf_counter() - begun - engine.programs.compile_seconds
    return [engine.results.pop(i) for i in ids], seconds


def say(text: str) -> None:
    """Prints what there is, at once."""
    if text:
        print(text, end="", flush=True)


def heading(requests: list[Request], number: int, tokenizer: Tokenizer) -> None:
    """What comes before a continuation."""
    request = requests[number]
    if len(requests) > 1:
        say(f"--- {number + 1} of {len(requests)}\n")
    say(tokenizer.decode(request.tokens) if request.tokens else request.prompt)


def ending(result: Result, tokenizer: Tokenizer) -> None:
    """What comes after it."""
    say("\n")
    if result.finished == "positions":
        print("(the text ends where the model's learned positions do)", file=sys.stderr)
    if not result.request.logprobs:
        return
    for token, logprob, top in zip(result.tokens, result.logprobs, result.top, strict=True):
        likely = "  ".join(f"{tokenizer.decode([other])!r} {other_logprob:.3f}" for other, other_logprob in top)
        say(f"{tokenizer.decode([token])!r:>16} {logprob:8.3f}   of: {likely}\n")
