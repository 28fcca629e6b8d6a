"""Prints prompts with their continuations in order: the first unfinished one as its tokens come, the others
after it."""

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


def run_and_print(engine: Engine, requests: list[Request]) -> tuple[list[Result], float]:
    """Runs the requests and prints their texts to stdout: (results in order, seconds without compilation).

    Log lines of the engine that would break a text are printed after it. Raises UserError where the model
    outputs NaN.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale is
    log = engine.programs.log
    held_lines: list[str] = []
    engine.programs.log = held_lines.append
    begun = time.perf_counter()
    ids = [engine.submit(request) for request in requests]
    arrived: dict[int, str] = {}
    current, in_text = 0, False
    try:
        while current < len(ids):
            for event in engine.step():
                if math.isnan(event.logprob):
                    raise UserError(f"{engine.name}: {OUTPUTS_NAN}")
                arrived[event.id] = arrived.get(event.id, "") + event.text
            while current < len(ids) and ids[current] in arrived:
                if not in_text:
                    flush_log(held_lines, log)
                    print_heading(requests, current, engine.tokenizer)
                in_text = True
                print_now(arrived[ids[current]])
                arrived[ids[current]] = ""
                result = engine.results[ids[current]]
                if result.finished is None:
                    break
                print_ending(result, engine.tokenizer)
                current, in_text = current + 1, False
            if not in_text:
                flush_log(held_lines, log)
    except KeyboardInterrupt:
        print_now("\n")  # after half a line
        raise
    finally:
        engine.programs.log = log
        flush_log(held_lines, log)
    seconds = time.perf_counter() - begun - engine.programs.compile_seconds
    return [engine.results.pop(i) for i in ids], seconds


def flush_log(lines: list[str], log: Callable[[str], None]) -> None:
    """Logs lines that were held back, and empties the list."""
    for line in lines:
        log(line)
    lines.clear()


def print_now(text: str) -> None:
    """Prints text without a line end, unbuffered."""
    if text:
        print(text, end="", flush=True)


def print_heading(requests: list[Request], number: int, tokenizer: GenerationTokenizer) -> None:
    """Prints the prompt that a continuation follows; among several prompts, its number first."""
    request = requests[number]
    if len(requests) > 1:
        print_now(f"--- {number + 1} of {len(requests)}\n")
    if not request.messages:  # then the continuation is an answer
        print_now(tokenizer.decode(request.ids) if request.ids else request.prompt)


def print_ending(result: Result, tokenizer: GenerationTokenizer) -> None:
    """Ends the line of a continuation, and prints its log-probabilities where the request wants them."""
    print_now("\n")
    if result.finished == "positions":
        print("(the text ends at the model's last learned position)", file=sys.stderr)
    if not result.request.logprobs:
        return
    for token, logprob, top in zip(result.tokens, result.logprobs, result.top, strict=True):
        likely = "  ".join(
            f"{tokenizer.decode([other])!r} {other_logprob:.3f}" for other, other_logprob in top
        )
        print_now(f"{tokenizer.decode([token])!r:>16} {logprob:8.3f}   of: {likely}\n")
