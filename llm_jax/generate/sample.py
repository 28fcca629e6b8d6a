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

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.arithmetic import round_up
from llm_jax.data import Tokenizer
from llm_jax.generate.sampling import divide_by_temperature
from llm_jax.model.attention_context import length_multiple
from llm_jax.train.config import SampleConfig
from llm_jax.train.state import TrainModel


class Sampler:
    """Continues the same prompts with weights as they are at some time, by one compiled program."""

    def __init__(
        self,
        program: TrainModel,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        config: SampleConfig,
        window: int,
        seed: int,
    ):
        """prompts: token ids, one prompt or more. window: the model sees at most so many tokens, the last."""
        self.program, self.tokenizer, self.config, self.seed = program, tokenizer, config, seed
        self.prompts = [list(prompt) for prompt in prompts]
        place = program.place
        self.longest = min(window, round_up(max(map(len, prompts)) + config.tokens, length_multiple(place)))
        self.batch = round_up(len(prompts), place.size(place.axes("batch")))
        self.next_token = program.jit(self._next_token)

    def _next_token(
        self, parameters: Any, tokens_BT: jax.Array, last_B: jax.Array, key: jax.Array
    ) -> jax.Array:
        """int32 [B]: the next token of each row, whose tokens end at position `last_B`."""
        config, place, model = self.config, self.program.place, self.program.model(parameters)
        x_BTD = model.hidden(tokens_BT)
        spec = place.spec(("batch", None, "embed"))
        at_last_BT1 = jnp.arange(self.longest)[None, :, None] == last_B[:, None, None]
        x_BTD = jnp.sum(jnp.where(at_last_BT1, x_BTD, 0), 1, keepdims=True)
        logits_BTV = model.logits(jax.sharding.reshard(x_BTD, spec)).astype(jnp.float32)
        logits_BV = jax.sharding.reshard(logits_BTV, jax.sharding.PartitionSpec(None, None, None))[
            :, 0, : self.tokenizer.vocab_size
        ]
        if config.temperature == 0:
            return jnp.argmax(logits_BV, -1)
        if config.top_k:
            least = jax.lax.top_k(logits_BV, min(config.top_k, logits_BV.shape[-1]))[0][:, -1:]
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        return jax.random.categorical(key, divide_by_temperature(logits_BV, config.temperature), axis=-1)

    def texts(self, parameters: Any, before_token: Callable[[], None] = lambda: None) -> list[str]:
        """A continuation of each prompt: up to `sample.tokens` tokens, or to a token that ends a text.

        Equal parameters give equal texts. before_token: called before each token; an exception that it raises
        ends the sampling.
        """
        place, tokenizer, count = self.program.place, self.tokenizer, len(self.prompts)
        rows = [*self.prompts, *[[tokenizer.bos_id]] * (self.batch - count)]
        finished = [False] * count + [True] * (self.batch - count)
        sharding = place.sharding(("batch", None), "compute")
        for i in range(self.config.tokens):
            before_token()
            tokens_BT = np.zeros((self.batch, self.longest), np.int32)
            for row, ids in zip(tokens_BT, rows, strict=True):
                recent = ids[-self.longest :]
                row[: len(recent)] = recent
            last_B = np.array([min(len(ids), self.longest) - 1 for ids in rows], np.int32)
            drawn = np.asarray(
                self.next_token(
                    parameters,
                    jax.device_put(tokens_BT, sharding),
                    jax.device_put(last_B, place.sharding(("batch",), "compute")),
                    jax.random.fold_in(jax.random.key(self.seed), i),
                )
            )
            for b, token in enumerate(drawn.tolist()):
                if not finished[b]:
                    rows[b] = [*rows[b], token]
                    finished[b] = token in tokenizer.eos_ids
            if all(finished):
                break
        return [
            tokenizer.decode([t for t in row[len(prompt) :] if t not in tokenizer.eos_ids])
            for row, prompt in zip(rows, self.prompts, strict=False)
        ]
