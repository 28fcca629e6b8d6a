"""What the command prints: prompts with their continuations, the first that isn't done as it comes, the others after it."""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable

from llm_jax.core.errors import UserError
from llm_jax.generate.engine import Engine
from llm_jax.generate.id_tokenizer import GenerationTokenizer
from llm_jax.generate.request import Request, Result
from llm_jax.pretrained.model import OUTPUTS_NAN


def write(engine: Engine, requests: list[Request]) -> tuple[list[Result], float]:
    """Runs the requests and prints them in order: (results, seconds without those of compiling).

    What the engine says meanwhile waits for the end of the text that it would break.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale says
    aloud = engine.programs.log
    held: list[str] = []
    engine.programs.log = held.append
    begun = time.perf_counter()
    ids = [engine.submit(request) for request in requests]
    arrived: dict[int, str] = {}
    now, amid = 0, False
    try:
        while now < len(ids):
            for event in engine.step():
                if math.isnan(event.logprob):
                    raise UserError(f"{engine.path}: {OUTPUTS_NAN}")
                arrived[event.id] = arrived.get(event.id, "") + event.text
            while now < len(ids) and ids[now] in arrived:
                if not amid:
                    say_held(held, aloud)
                    heading(requests, now, engine.tokenizer)
                amid = True
                write_now(arrived[ids[now]])
                arrived[ids[now]] = ""
                result = engine.results[ids[now]]
                if result.finished is None:
                    break
                ending(result, engine.tokenizer)
                now, amid = now + 1, False
            if not amid:
                say_held(held, aloud)
    except KeyboardInterrupt:
        write_now("\n")  # after half a line
        raise
    finally:
        engine.programs.log = aloud
        say_held(held, aloud)
    seconds = time.perf_counter() - begun - engine.programs.compile_seconds
    return [engine.results.pop(i) for i in ids], seconds


def say_held(lines: list[str], aloud: Callable[[str], None]) -> None:
    """Says what was kept back."""
    for line in lines:
        aloud(line)
    lines.clear()


def write_now(text: str) -> None:
    """Prints what there is, at once."""
    if text:
        print(text, end="", flush=True)


def heading(requests: list[Request], number: int, tokenizer: GenerationTokenizer) -> None:
    """What comes before a continuation."""
    request = requests[number]
    if len(requests) > 1:
        write_now(f"--- {number + 1} of {len(requests)}\n")
    write_now(tokenizer.decode(request.ids) if request.ids else request.prompt)


def ending(result: Result, tokenizer: GenerationTokenizer) -> None:
    """What comes after it."""
    write_now("\n")
    if result.finished == "positions":
        print("(the text ends where the model's learned positions do)", file=sys.stderr)
    if not result.request.logprobs:
        return
    for token, logprob, top in zip(result.tokens, result.logprobs, result.top, strict=True):
        likely = "  ".join(f"{tokenizer.decode([other])!r} {other_logprob:.3f}" for other, other_logprob in top)
        write_now(f"{tokenizer.decode([token])!r:>16} {logprob:8.3f}   of: {likely}\n")
