"""The other side of tools/bench_post_training.py: TRL and PEFT, driven through pipes. Needs neither JAX nor llm_jax.

  PYTHON_WITH_TRL tools/bench_trl.py PART FOLDER

PART: model (writes a random Llama of FOLDER/shape.json), sft, lora, dpo. The others train on FOLDER/data.npz: after the first
step, and after each line that is read, a line of JSON with the seconds and units of some steps is printed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback  # noqa: E402
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # noqa: E402

OUT = os.fdopen(os.dup(1), "w")
"""Where the figures go: progress bars of libraries go to standard error."""
os.dup2(2, 1)


def main() -> None:
    part, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(2)
    settings = json.loads((folder / "settings.json").read_text())
    torch.manual_seed(0)
    if part == "model":
        LlamaForCausalLM(LlamaConfig(**settings["llama"])).save_pretrained(folder / "model")
        return
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    kind, config = (PairTrainer, DPOConfig) if part == "dpo" else (ConversationTrainer, SFTConfig)
    more: dict[str, Any] = {"precompute_ref_log_probs": True} if part == "dpo" else {}
    arguments = config(
        output_dir=str(folder / f"trl_{part}"), per_device_train_batch_size=settings["trl_batch"][part], max_steps=10_000,
        learning_rate=1e-4, lr_scheduler_type="constant", weight_decay=0.0, max_length=settings["length"],
        use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=10_000, save_strategy="no", report_to="none",
        disable_tqdm=True, dataloader_num_workers=0, seed=0, **more,
    )  # fmt: skip
    trainer = kind(
        model, args=arguments, train_dataset=dataset(part, folder), processing_class=tokenizer(folder),
        callbacks=[Rounds(settings["steps"])], peft_config=adapter(settings) if part == "lora" else None,
    )  # fmt: skip
    trainer.train()


def adapter(settings: dict[str, Any]) -> Any:
    """LoRA on all linear maps but the head."""
    from peft import LoraConfig

    rank = settings["rank"]
    return LoraConfig(
        r=rank, lora_alpha=rank, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )


def dataset(part: str, folder: Path) -> Dataset:
    """Token ids: of conversations with masks, or of prompts with two answers."""
    with np.load(folder / "data.npz") as file:
        tokens, ends, prompts = file["tokens"], file["ends"], file["prompts"]
    texts = [ids.tolist() for ids in np.split(tokens, ends[:-1])]
    if part != "dpo":
        masks = [[0] * n + [1] * (len(ids) - n) for ids, n in zip(texts, prompts, strict=True)]
        return Dataset.from_dict({"input_ids": texts, "completion_mask": masks})
    chosen, rejected, n = texts[::2], texts[1::2], prompts[::2]
    columns = {"prompt_ids": [ids[:k] for ids, k in zip(chosen, n, strict=True)]}
    for name, answers in (("chosen_ids", chosen), ("rejected_ids", rejected)):
        columns[name] = [ids[k:] for ids, k in zip(answers, n, strict=True)]
    return Dataset.from_dict(columns)


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer that is never used, but for its padding."""
    from tokenizers import Tokenizer, models

    words = {"<pad>": 0, "<eos>": 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "<pad>")), pad_token="<pad>", eos_token="<eos>"
    )


class Counted:
    """Counts the units of the steps since the last round."""

    units = 0.0

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        """Counts, and trains."""
        self.units += self.units_of(inputs)
        return super().training_step(model, inputs, *rest)  # type: ignore[misc]

    def units_of(self, inputs: dict[str, Any]) -> float:
        """The trained tokens of a batch."""
        return float((inputs["labels"][:, 1:] != -100).sum())


class ConversationTrainer(Counted, SFTTrainer):
    """SFT, which counts trained tokens."""

    def __init__(self, *arguments: Any, **more: Any):
        super().__init__(*arguments, **more)
        self.add_callback(Shows(self))


class PairTrainer(Counted, DPOTrainer):
    """DPO on ids, which counts pairs."""

    def __init__(self, *arguments: Any, **more: Any):
        more.pop("peft_config")
        super().__init__(*arguments, **more)
        self.add_callback(Shows(self))

    def _prepare_dataset(self, dataset: Dataset, *arguments: Any, **more: Any) -> Dataset:
        return dataset

    def units_of(self, inputs: dict[str, Any]) -> float:
        """The pairs of a batch."""
        return inputs["input_ids"].shape[0] / 2


class Shows(TrainerCallback):
    """Gives the rounds the trainer that they count for."""

    def __init__(self, trainer: Counted):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        Rounds.trainer = self.trainer


class Rounds(TrainerCallback):
    """After the first step, and then after every so many, prints figures and waits for a line."""

    trainer: Counted

    def __init__(self, steps: int):
        self.steps, self.begun, self.cpu = steps, 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        done = state.global_step - 1
        if done % self.steps:
            return control
        trainer = self.trainer
        seconds = time.perf_counter() - (self.begun or STARTED)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        spent = {"seconds": seconds, "cpu": time.process_time() - self.cpu}
        print(json.dumps({**spent, "units": trainer.units, "peak": peak}), file=OUT, flush=True)
        if not sys.stdin.readline().strip():
            control.should_training_stop = True
            return control
        trainer.units, self.begun, self.cpu = 0.0, time.perf_counter(), time.process_time()
        return control


if __name__ == "__main__":
    main()
