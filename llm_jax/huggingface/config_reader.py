"""A config.json, read key by key, so that none is passed over in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.core.errors import UserError, closest

ABSENT = object()

INERT = {
    # what the file is, and who wrote it
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "auto_map",
    "use_cache", "cache_implementation", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "unsloth_version",
    "unsloth_fixed", "torchscript", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward",
    "task_specific_params", "problem_type", "finetuning_task", "id2label", "label2id", "pretraining_tp", "n_ctx", "reorder_and_upcast_attn",
    "is_llama_config", "transformers.js_config", "_num_labels",
    # ids of tokens, which the tokenizer and generation_config.json have too
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "mask_token_id", "decoder_start_token_id",
    # what only training is about
    "initializer_range", "initializer_factor", "attention_dropout", "hidden_dropout", "classifier_dropout", "attention_probs_dropout_prob",
    "hidden_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "gradient_checkpointing", "router_aux_loss_coef", "router_jitter_noise", "output_router_logits", "aux_loss_alpha", "seq_aux", "ep_size",
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "summary_activation_fn",
    # how text is generated, in old files
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p",
    "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "prefix", "tokenizer_class",
}  # fmt: skip
"""Keys that do not change what a model computes."""
ONLY: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,), "is_decoder": (False, True), "add_cross_attention": (False,), "tie_encoder_decoder": (False,),
    "cross_attention_hidden_size": (None,), "pruned_heads": ({}, None), "use_bidirectional_attention": (False, None), "use_mrope": (False,),
    "rope_interleaved": (False,), "tf_legacy_loss": (False,), "use_bfloat16": (False, True),
}  # fmt: skip
"""Keys that would change it, and the values with which they don't."""
NULLABLE = {
    "num_key_value_heads", "head_dim", "sliding_window", "q_lora_rank", "n_group", "topk_group", "n_shared_experts", "first_k_dense_replace",
    "attn_logit_softcapping", "final_logit_softcapping", "norm_topk_prob", "rope_interleave",
}  # fmt: skip
"""Numbers and choices that may be null although a class has another default: there is none of it, or it follows from others."""


class Keys:
    """The keys of a config.json. What a family doesn't take is refused in the end, unless it is known to change nothing, or is null."""

    def __init__(self, tree: Mapping[str, Any], where: object):
        self.tree, self.where = tree, where
        self.taken: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether a key is there, with a value."""
        return self.tree.get(name) is not None

    def take(self, name: str, default: Any, *also: str) -> Any:
        """The value of a key, which may be spelt in other ways; `default` where there is none. A number is checked to be one."""
        names = (name, *also)
        self.taken.update(names)
        found = {n: self.tree[n] for n in names if n in self.tree}
        if not found:
            return default
        value, *others = found.values()
        if any(other != value for other in others):
            raise self.wrong(f"{' and '.join(f'{n}={v}' for n, v in found.items())} are one key in two spellings and differ")
        kind = type(default)
        if kind in (int, float, bool) and value is not None:
            right = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
            if not right or (isinstance(value, bool) and kind is not bool):
                raise self.wrong(f"{name}={value!r}: must be {'true or false' if kind is bool else 'a number'}")
        if value is None and (kind in (int, float) or default is True) and name not in NULLABLE:
            raise self.wrong(f"{name}=null: must be {'true or false' if kind is bool else 'a number'}")
        if value is None:
            return False if kind is bool else None
        return float(value) if kind is float else value  # transformers 5 takes no whole number for one that may be none

    def group(self, name: str) -> dict[str, Any]:
        """A copy of the object that is the value of a key; empty where there is none."""
        value = self.take(name, None)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(f"{name}={value}: must be an object, or null")
        return dict(value or {})

    def number(self, name: str, default: float | None = None, *also: str, whole: bool = False) -> Any:
        """The value of a key that is a number, or null."""
        value = self.take(name, default, *also)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int if whole else (int, float))):
            raise self.wrong(f"{name}={value!r}: must be a {'whole ' if whole else ''}number, or null")
        return value if whole or value is None else float(value)

    def array(self, name: str) -> list[Any] | None:
        """The array that is the value of a key; None where there is none."""
        value = self.take(name, None)
        if value is not None and not isinstance(value, list):
            raise self.wrong(f"{name}={value}: must be an array, or null")
        return value

    def above_zero(self, name: str, default: Any, *also: str) -> Any:
        """The value of a key that is a number by which something is divided."""
        value = self.take(name, default, *also)
        if not value > 0:
            raise self.wrong(f"{name}={value}: must be above 0")
        return value

    def must(self, name: str, *right: Any) -> None:
        """Raises UserError where a key has another value than these."""
        if self.take(name, right[0]) not in right:
            said = " or ".join("null" if value is None else str(value) for value in right)
            raise self.wrong(f"{name}={self.tree[name]}: is not built here; must be {said}")

    def choice(self, name: str, choices: Mapping[str, Any], default: str, *also: str) -> Any:
        """What the value of a key stands for."""
        value = self.take(name, default, *also)
        value = default if value is None else value
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(f"{name}={value}: is not built here; must be one of {', '.join(choices)}")
        return choices[value]

    def finish(self) -> None:
        """Raises UserError for a key that nothing took and that may change what the model computes."""
        for name, value in self.tree.items():
            if name in ONLY and name not in self.taken:
                self.must(name, *ONLY[name])
            elif name not in self.taken and name not in INERT and value is not None:
                close = closest(name, self.taken)
                raise self.wrong(
                    f"{name}={value}: is unknown, and may change what the model computes" + (f"; did you mean {close}?" if close else "")
                )

    def check_quantization(self) -> None:
        """8-bit weights with a scale for each block of 128 x 128 (DeepSeek-V3, and others since) are read; no others."""
        told = self.group("quantization_config")
        if told and (told.get("quant_method"), told.get("weight_block_size")) != ("fp8", [128, 128]):
            raise self.wrong(f"quantization_config={told}: is not built here; must have quant_method=fp8 and weight_block_size=[128, 128]")

    def wrong(self, said: str) -> UserError:
        """An error about a value."""
        return UserError(f"{self.where}: {said}")
