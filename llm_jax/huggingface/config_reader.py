"""Reads a config.json key by key, so that no key that may change the model is ignored silently."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from llm_jax.core.errors import UserError, closest

INERT_KEYS = {
    # the file's kind and author
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path",
    "_model_name_or_path", "name_or_path", "_commit_hash", "auto_map", "use_cache", "cache_implementation",
    "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "unsloth_version",
    "unsloth_fixed", "torchscript", "return_dict", "use_return_dict", "output_attentions",
    "output_hidden_states", "chunk_size_feed_forward",
    "task_specific_params", "problem_type", "finetuning_task", "id2label", "label2id", "pretraining_tp",
    "n_ctx", "reorder_and_upcast_attn", "is_llama_config", "transformers.js_config", "_num_labels",
    # token ids, which the tokenizer and generation_config.json have too
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "unk_token_id",
    "mask_token_id", "decoder_start_token_id",
    # training only
    "initializer_range", "initializer_factor", "attention_dropout", "hidden_dropout", "classifier_dropout",
    "attention_probs_dropout_prob", "hidden_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "gradient_checkpointing", "router_aux_loss_coef", "router_jitter_noise", "output_router_logits",
    "aux_loss_alpha", "seq_aux", "ep_size", "summary_type", "summary_use_proj", "summary_activation",
    "summary_proj_to_labels", "summary_first_dropout", "summary_activation_fn",
    # generation settings, in old files
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
    "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id",
    "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "prefix", "tokenizer_class",
}  # fmt: skip
"""Keys that do not change what a model computes."""
INERT_VALUES: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,), "is_decoder": (False, True), "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,), "cross_attention_hidden_size": (None,), "pruned_heads": ({}, None),
    "use_bidirectional_attention": (False, None), "use_mrope": (False,), "rope_interleaved": (False,),
    "tf_legacy_loss": (False,), "use_bfloat16": (False, True),
}  # fmt: skip
"""Keys that may change what a model computes, and the values with which they do not."""
NULLABLE_KEYS = {
    "num_key_value_heads", "head_dim", "sliding_window", "q_lora_rank", "n_group", "topk_group",
    "n_shared_experts", "first_k_dense_replace", "attn_logit_softcapping", "final_logit_softcapping",
    "norm_topk_prob", "rope_interleave",
}  # fmt: skip
"""Keys that may be null although their class has another default: null means none, or a value that other keys
determine.
"""


class ConfigReader:
    """Reads the keys of a config.json.

    A key that no method takes makes `finish` raise, unless it is null or known to change nothing.
    """

    def __init__(self, tree: Mapping[str, Any], where: object):
        self.tree, self.where = tree, where
        self.taken: set[str] = set()

    def has(self, name: str) -> bool:
        """True if the key is present and not null."""
        return self.tree.get(name) is not None

    def take(self, name: str, default: Any, *aliases: str) -> Any:
        """The value of a key, which `aliases` may spell instead; `default` if it is absent.

        Raises UserError if the default is a number or a boolean and the value is not.
        """
        names = (name, *aliases)
        self.taken.update(names)
        found = {n: self.tree[n] for n in names if n in self.tree}
        if not found:
            return default
        value, *others = found.values()
        if any(other != value for other in others):
            given = " and ".join(f"{n}={v}" for n, v in found.items())
            raise self.error(f"{given}: two spellings of one key must have one value")
        kind = type(default)
        if kind in (int, float, bool) and value is not None:
            right = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
            if not right or (isinstance(value, bool) and kind is not bool):
                raise self.error(
                    f"{name}={value!r}: must be {'true or false' if kind is bool else 'a number'}"
                )
        self.check_size(name, value)
        if value is None and (kind in (int, float) or default is True) and name not in NULLABLE_KEYS:
            raise self.error(f"{name}=null: must be {'true or false' if kind is bool else 'a number'}")
        if value is None:
            return False if kind is bool else None
        return float(value) if kind is float else value  # transformers 5 refuses an int where a float is due

    def check_size(self, name: str, value: Any) -> None:
        """Raises UserError for a whole number that no size of an array can be; checked before anything is
        made that is so large.
        """
        if isinstance(value, int) and not -(2**31) < value < 2**31:
            raise self.error(f"{name}={value}: must be below 2^31")

    def group(self, name: str) -> dict[str, Any]:
        """A copy of the object that is the value of a key; empty if the key is absent or null."""
        value = self.take(name, None)
        if value is not None and not isinstance(value, dict):
            raise self.error(f"{name}={value}: must be an object, or null")
        return dict(value or {})

    def number(self, name: str, default: float | None = None, *aliases: str, whole: bool = False) -> Any:
        """The value of a key that is a number or null: an int if `whole`, else a float."""
        value = self.take(name, default, *aliases)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int if whole else (int, float))
        ):
            raise self.error(f"{name}={value!r}: must be a {'whole ' if whole else ''}number, or null")
        return value if whole or value is None else float(value)

    def array(self, name: str) -> list[Any] | None:
        """The array that is the value of a key; None if the key is absent or null."""
        value = self.take(name, None)
        if value is not None and not isinstance(value, list):
            raise self.error(f"{name}={value}: must be an array, or null")
        return value

    def positive(self, name: str, default: Any, *aliases: str) -> Any:
        """The value of a key that is a number above 0."""
        value = self.take(name, default, *aliases)
        if not value > 0:
            raise self.error(f"{name}={value}: must be above 0")
        return value

    def require(self, name: str, *supported: Any) -> None:
        """Raises UserError unless a key has one of these values; the first of them is the default."""
        if self.take(name, supported[0]) not in supported:
            values = " or ".join("null" if value is None else str(value) for value in supported)
            raise self.error(f"{name}={self.tree[name]}: is not supported; must be {values}")

    def choice(self, name: str, choices: Mapping[str, Any], default: str, *aliases: str) -> Any:
        """The entry of `choices` that the value of a key names."""
        value = self.take(name, default, *aliases)
        value = default if value is None else value
        if not isinstance(value, str) or value not in choices:
            raise self.error(f"{name}={value}: is not supported; must be one of {', '.join(choices)}")
        return choices[value]

    def finish(
        self,
        inert: Collection[str] = INERT_KEYS,
        inert_values: Mapping[str, tuple[Any, ...]] = INERT_VALUES,
    ) -> None:
        """Raises UserError for a key that nothing took and that may change what the model computes: it is not
        one of `inert`, and of `inert_values` it has another value."""
        for name, value in self.tree.items():
            if name in inert_values and name not in self.taken:
                self.require(name, *inert_values[name])
            elif name not in self.taken and name not in inert and value is not None:
                close = closest(name, self.taken)
                hint = f"; did you mean {close}?" if close else ""
                raise self.error(f"{name}={value}: is unknown, and may change what the model computes" + hint)

    def check_quantization(self) -> None:
        """Raises UserError for quantised weights other than 8-bit with one scale per block of 128 x 128
        (DeepSeek-V3's).
        """
        settings = self.group("quantization_config")
        if settings and (settings.get("quant_method"), settings.get("weight_block_size")) != (
            "fp8",
            [128, 128],
        ):
            raise self.error(
                f"quantization_config={settings}: is not supported; must have quant_method=fp8 and "
                "weight_block_size=[128, 128]"
            )

    def error(self, problem: str) -> UserError:
        """The error for a problem, which names the file first."""
        return UserError(f"{self.where}: {problem}")
