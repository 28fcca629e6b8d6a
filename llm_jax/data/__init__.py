"""From a corpus to the batch at step `s`: sources, tokenizer, token cache, packing, mixing.

TFDS, SentencePiece, tokenizers and PyArrow are slow to import, and are imported where they are used.
"""

from llm_jax.data.config import ChatConfig, DataConfig, TokenizerConfig
from llm_jax.data.corpus import BATCH_KEYS, Corpus, batch_sha, prepare
from llm_jax.data.documents import WHOLE_RECORD
from llm_jax.data.load_tokenizer import load_tokenizer
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.data.train_tokenizer import vocabulary_size

__all__ = [
    "BATCH_KEYS",
    "WHOLE_RECORD",
    "ChatConfig",
    "Corpus",
    "DataConfig",
    "Tokenizer",
    "TokenizerConfig",
    "batch_sha",
    "load_tokenizer",
    "prepare",
    "vocabulary_size",
]
