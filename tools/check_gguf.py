"""Compares a GGUF file, as it is read here, with transformers reading the same file (`gguf_file=`).

`python -m tools.check_gguf FILE.gguf texts=FILE [lines=10000] [positions=512] [tokens=32]`

It prints the largest difference of a float32 logit over the first positions of the texts, how many of the lines
have the same ids (control tokens by name in both, and the lines that differ first), and how many greedy
continuations of lines are the same. Where the tokenizer is SentencePiece's, ids are also compared with the
library's, from the file's tokens and scores. Needs the extra `reference`. Exit code 1 for logits that differ by
more than 1e-3, or for other continuations.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no network

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_jax.data import Tokenizer
from llm_jax.generate.engine import Engine
from llm_jax.generate.request import Request
from llm_jax.huggingface.gguf.header import read_header
from llm_jax.pretrained.model import PretrainedModel, open_model

TOLERANCE = 1e-3
LINES, CHUNK = 10_000, 64
PROMPTS = 6


def logit_difference(opened: PretrainedModel, theirs: Any, ids: list[int]) -> tuple[float, float]:
    """(the largest difference of a logit, the standard deviation of logits) over ids."""
    with jax.set_mesh(opened.place.mesh):
        states = jax.jit(lambda p, t: opened.program.model(p)(t))(opened.parameters, jnp.asarray([ids]))
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    worst = max(
        float(np.abs(np.asarray(states[0, at : at + CHUNK]) - expected[at : at + CHUNK].numpy()).max())
        for at in range(0, len(ids), CHUNK)
    )
    return worst, float(expected.std())


def sentencepiece_of(file: Path) -> Any:
    """SentencePiece's processor with the tokens, scores and types of a file."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2
    about = {
        key: value for key, value in read_header(file).metadata.items() if key.startswith("tokenizer.ggml.")
    }
    about = {key.removeprefix("tokenizer.ggml."): value for key, value in about.items()}
    model = protocol.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.normalizer_spec.add_dummy_prefix = about.get("add_space_prefix", True)
    model.normalizer_spec.remove_extra_whitespaces = False
    for i, (token, score, kind) in enumerate(
        zip(about["tokens"], about["scores"], about["token_type"], strict=True)
    ):
        unknown = i == about["unknown_token_id"]
        text = token.replace(" ", "\u2581") if kind == 4 else token
        model.pieces.add(piece=text, score=score, type=2 if unknown else kind)
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def compare_ids(tokenizer: Tokenizer, theirs: Any, lines: list[str], file: Path) -> None:
    """Prints how many lines have the same ids."""
    expected = [theirs(line, add_special_tokens=False)["input_ids"] for line in lines]
    other = [
        line for line, ids in zip(lines, expected, strict=True) if tokenizer.encode_with_control(line) != ids
    ]
    print(f"ids: {len(lines) - len(other):,} of {len(lines):,} lines are the same as transformers'")
    for line in other[:5]:
        print(f"  not: {line[:100]!r}")
    if read_header(file).metadata["tokenizer.ggml.model"] == "llama":
        spm = sentencepiece_of(file)
        same = sum(spm.encode(line) == tokenizer.encode(line) for line in lines)
        print(f"ids: {same:,} of {len(lines):,} lines are the same as SentencePiece's")


def same_continuations(opened: PretrainedModel, theirs: Any, prompts: list[list[int]], tokens: int) -> int:
    """How many greedy continuations of prompts are the same."""
    engine = Engine.of(opened, slots=len(prompts), max_tokens=max(map(len, prompts)) + tokens)
    results = engine.generate([Request(ids=tuple(p), max_tokens=tokens, temperature=0) for p in prompts])
    ends = {"eos_token_id": [*opened.tokenizer.eos_ids], "pad_token_id": opened.tokenizer.pad_id}
    same = 0
    for prompt, result in zip(prompts, results, strict=True):
        made = theirs.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False, **ends)[0]
        text = opened.tokenizer.decode(made[len(prompt) :].tolist())
        same += text == result.text
    return same


def main() -> None:
    """Runs the comparison of a command line."""
    (name,) = (word for word in sys.argv[1:] if "=" not in word)
    settings = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    file, text = Path(name), Path(settings["texts"]).read_text()
    lines = [line for line in text.splitlines() if line.strip()][: int(settings.get("lines", LINES))]
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    opened = open_model(file, dtype="float32")
    tokenizer = opened.tokenizer
    first = [tokenizer.bos_id] if tokenizer.puts_bos else []
    compare_ids(tokenizer, AutoTokenizer.from_pretrained(**where), lines, file)
    theirs = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    ids = [*first, *tokenizer.encode(text[:20_000])][: int(settings.get("positions", 512))]
    worst, deviation = logit_difference(opened, theirs, ids)
    print(f"logits: differ by at most {worst:.1e} over {len(ids)} positions (deviation {deviation:.1f})")
    prompts = [[*first, *tokenizer.encode(line)[:12]] for line in lines[:: max(1, len(lines) // PROMPTS)]][
        :PROMPTS
    ]
    same = same_continuations(opened, theirs, prompts, int(settings.get("tokens", 32)))
    print(f"greedy: {same} of {len(prompts)} continuations are the same")
    sys.exit(worst > TOLERANCE or same < len(prompts))


if __name__ == "__main__":
    main()
