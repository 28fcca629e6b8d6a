"""Short sample texts that show what a run has learned, by the forward pass of training.

Every token costs a whole forward pass over a fixed window, which keeps the code small and obviously right.
The engine could write samples too, at a price that the end of every run would pay: it compiles two programs
with unrolled layers, where this module compiles one with layers as the train step has them (3 samples of 60
tokens: 3.3 s by the engine and 1.3 s here with the quickstart's 4 layers, 9.9 s and 3.2 s with 32; two CPU
cores, nothing cached). The engine also needs a second copy of the weights beside the optimizer's state, where
this needs less memory than the step that has just run, and it has no window that moves along with a text
longer than the sequences of training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.arithmetic import round_up
from llm_jax.data import Tokenizer
from llm_jax.generate.sampling import divide_by_temperature
from llm_jax.model.attention_context import length_multiple
from llm_jax.train.compile import program_options
from llm_jax.train.config import SampleConfig
from llm_jax.train.state import TrainModel


def sample_texts(
    program: TrainModel,
    parameters: Any,
    tokenizer: Tokenizer,
    config: SampleConfig,
    window: int,
    seed: int,
    before_token: Callable[[], None] = lambda: None,
) -> list[str]:
    """A continuation of each prompt: up to `config.tokens` tokens, or to EOS.

    The model sees at most the last `window` tokens. Equal parameters, prompts and seed give equal texts.
    before_token: called before each token; an exception that it raises ends the sampling.
    """
    if not config.prompts:
        return []
    prompts = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in config.prompts]
    place = program.place
    longest = min(window, round_up(max(map(len, prompts)) + config.tokens, length_multiple(place)))
    batch = round_up(len(prompts), place.size(place.axes("batch")))
    rows = [list(p) for p in prompts] + [[tokenizer.bos_id]] * (batch - len(prompts))

    @functools.partial(jax.jit, compiler_options=program_options(program) or None)
    def next_token(parameters, tokens_BT, last_B, key):
        model = program.model(parameters)
        x_BTD = model.hidden(tokens_BT)
        spec = place.spec(("batch", None, "embed"))
        x_BTD = jnp.sum(
            jnp.where(jnp.arange(longest)[None, :, None] == last_B[:, None, None], x_BTD, 0), 1, keepdims=True
        )
        logits_BTV = model.logits(jax.sharding.reshard(x_BTD, spec)).astype(jnp.float32)
        logits_BV = jax.sharding.reshard(logits_BTV, jax.sharding.PartitionSpec(None, None, None))[
            :, 0, : tokenizer.vocab_size
        ]
        if config.temperature == 0:
            return jnp.argmax(logits_BV, -1)
        if config.top_k:
            least = jax.lax.top_k(logits_BV, min(config.top_k, logits_BV.shape[-1]))[0][:, -1:]
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        return jax.random.categorical(key, divide_by_temperature(logits_BV, config.temperature), axis=-1)

    finished = [False] * len(prompts) + [True] * (batch - len(prompts))
    sharding = place.sharding(("batch", None), "compute")
    for i in range(config.tokens):
        before_token()
        tokens_BT = np.zeros((batch, longest), np.int32)
        for row, ids in zip(tokens_BT, rows, strict=True):
            recent = ids[-longest:]
            row[: len(recent)] = recent
        last_B = np.array([min(len(ids), longest) - 1 for ids in rows], np.int32)
        key = jax.random.fold_in(jax.random.key(seed), i)
        drawn = np.asarray(
            next_token(
                parameters,
                jax.device_put(tokens_BT, sharding),
                jax.device_put(last_B, place.sharding(("batch",), "compute")),
                key,
            )
        )
        for b, token in enumerate(drawn.tolist()):
            if not finished[b]:
                rows[b] = [*rows[b], token]
                finished[b] = token == tokenizer.eos_id
        if all(finished):
            break
    return [
        tokenizer.decode([t for t in row[len(p) :] if t != tokenizer.eos_id])
        for row, p in zip(rows, prompts, strict=False)
    ]
