"""Makes tests/data/chat_cases.json: conversations in chat templates as transformers writes them.

  pip install -e '.[dev,reference]' && python -m tools.make_chat_fixtures

For each template of tests/data/chat_templates (in the forms that published models use) and each conversation: the ids,
and which tokens are the model's (`return_assistant_tokens_mask`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

FOLDER = Path(__file__).parent.parent / "tests" / "data"
CONTROL = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|head|>",
    "<|/head|>",
    "<|eot|>",
    "<turn>",
    "</turn>",
]
PLAIN = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
"""Added tokens that are not special, as Qwen has them."""
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers: a + b <int>.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            },
        },
    }
]
CASES: dict[str, dict[str, Any]] = {
    "system": {
        "messages": [
            {"role": "system", "content": "Be brief, and kind."},
            {"role": "user", "content": " What is 1 + 1?\n"},
            {"role": "assistant", "content": "It is 2: naïve, 日本 😀"},
        ]
    },
    "turns": {
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "  two  "},
            {"role": "user", "content": "three\n\nfour"},
            {"role": "assistant", "content": "five"},
            {"role": "user", "content": "six"},
            {"role": "assistant", "content": "seven\n"},
        ]
    },
    "tools": {
        "messages": [
            {"role": "user", "content": "Add 1 and 2."},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "3"},
        ],
        "tools": TOOLS,
    },
    "thinking": {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "reasoning_content": "\nhmm\n"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "reasoning_content": "well, c follows b"},
        ]
    },
}


def make_tokenizer() -> Tokenizer:
    """A small byte-level BPE with control tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    texts = [
        "user assistant system tool model content function arguments parameters what is one two three four\n"
    ] * 5
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=CONTROL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(texts, trainer)
    made.add_tokens([AddedToken(name, special=False, normalized=False) for name in PLAIN])
    return made


def main() -> None:
    """Writes the tokenizer and the cases."""
    from transformers import PreTrainedTokenizerFast

    made = make_tokenizer()
    folder = FOLDER / "chat_tokenizer"
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    stops = [made.token_to_id(name) for name in ("</s>", "<|im_end|>", "<|eot|>", "</turn>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}) + "\n")
    theirs = PreTrainedTokenizerFast(tokenizer_object=made, **config)
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((FOLDER / "chat_templates").glob("*.jinja")):
        for name, case in CASES.items():
            result = theirs.apply_chat_template(
                case["messages"], tools=case.get("tools"), chat_template=path.read_text(),
                tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
            )  # fmt: skip
            prompt = theirs.apply_chat_template(
                case["messages"][:-1], tools=case.get("tools"), chat_template=path.read_text(),
                tokenize=False, add_generation_prompt=True,
            )  # fmt: skip
            found.setdefault(path.stem, {})[name] = {
                "ids": result["input_ids"], "mask": "".join(map(str, result["assistant_masks"])), "prompt": prompt,
            }  # fmt: skip
    text = json.dumps({"cases": CASES, "templates": found}, ensure_ascii=False, separators=(",", ":"))
    (FOLDER / "chat_cases.json").write_text(text + "\n")
    print(f"{len(found)} templates, {len(CASES)} cases each")


if __name__ == "__main__":
    main()
