"""A tensor of a GGUF file under Hugging Face's name: its rows are dequantised as they are read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.huggingface.gguf.header import KINDS
from llm_jax.huggingface.safetensors import FLOATS, Tensor

BLOCKS = {name: (block, block_bytes) for name, block, block_bytes in KINDS.values()}


@dataclass(frozen=True)
class GgufTensor(Tensor):
    """A tensor that looks as it does in Hugging Face's files of the same model.

    `dtype` is that of its rows: F32 where it is quantised.
    """

    kind: str = "F32"
    """The name of GGUF's type, with which it is stored."""
    interleaved_heads: int = 0
    """Llama's files have the rows of each head's queries and keys in another order, so that the two numbers
    that are rotated together lie together: the number of heads; 0: the order is Hugging Face's."""
    added: float = 0.0
    """What the file's numbers are larger by. (Gemma multiplies by 1 + weight, and files hold the sum.)"""

    def rows(self, first: int, end: int) -> np.ndarray:
        """The rows from `first` to before `end`, of dtype `dtype`."""
        if self.interleaved_heads:
            per = self.shape[0] // self.interleaved_heads
            begin, stop = first // per * per, -(-end // per) * per
            return halves_apart(self.stored_rows(begin, stop), per)[first - begin : end - begin]
        values = self.stored_rows(first, end)
        return values - values.dtype.type(self.added) if self.added else values

    def stored_rows(self, first: int, end: int) -> np.ndarray:
        """The rows as the file has them, dequantised."""
        if self.kind in FLOATS:
            return super().rows(first, end)
        if len(self.shape) == 1:  # a block spans rows of one number
            whole = GgufTensor(
                self.name, self.path, self.dtype, (1, *self.shape), self.offset, kind=self.kind
            )
            return whole.stored_rows(0, 1)[0, first:end]
        from gguf import GGMLQuantizationType, dequantize

        block, block_bytes = BLOCKS[self.kind]
        row_bytes = math.prod(self.shape[1:]) // block * block_bytes
        stored = np.fromfile(
            self.path, np.uint8, (end - first) * row_bytes, offset=self.offset + first * row_bytes
        )
        if stored.size != (end - first) * row_bytes:
            raise UserError(
                f"{self.path}: is shorter than its header says, at {self.name}. Copy or download it again"
            )
        values = dequantize(stored.reshape(end - first, row_bytes), GGMLQuantizationType[self.kind])
        return values.reshape(end - first, *self.shape[1:])


def halves_apart(rows: np.ndarray, per: int) -> np.ndarray:
    """Rows of whole heads of `per` rows each, from the order 0, per/2, 1, per/2 + 1, ... in each head into
    0, 1, 2, ..."""
    apart = rows.reshape(-1, per // 2, 2, *rows.shape[1:]).swapaxes(1, 2)
    return apart.reshape(rows.shape)
