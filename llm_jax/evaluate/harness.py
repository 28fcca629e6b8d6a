"""lm-evaluation-harness drives a model of ours in this process: `harness=true`, with a user's task files.

The library is the extra `evaluation`; it is imported only here, in the functions that need it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from llm_jax.core.errors import UserError
from llm_jax.core.log import log_to_stderr
from llm_jax.core.tables import make_console, table
from llm_jax.data.chat_template import ChatTemplate, Message
from llm_jax.data.huggingface_tokenizer import TOKENIZER_CONFIG, tree_of
from llm_jax.evaluate.chat_prompts import NO_TEMPLATE
from llm_jax.evaluate.lm_eval_convention import HarnessConvention
from llm_jax.evaluate.scorer import Scorer
from llm_jax.generate.chat import template_of
from llm_jax.generate.engine import Engine
from llm_jax.generate.request import Request
from llm_jax.pretrained.model import PretrainedModel
from llm_jax.pretrained.source import tokenizer_folder

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}
"""Set before the library is imported: it uses no network. (Bootstraps stay in this process.)"""
SLOTS = 8
"""Texts that are generated at once."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The names of the number of new tokens in a task file; the first that is there counts."""
SAMPLING = ("top_k", "top_p", "min_p", "seed")
"""Settings of sampling, which greedy texts ignore."""
MOST_TOKENS = 256
"""New tokens of a generated text, where the task names no number; as the backend `hf` has it."""


def library() -> ModuleType:
    """lm-evaluation-harness. Raises UserError where it isn't installed."""
    os.environ.update(OFFLINE)
    try:
        import lm_eval  # an optional extra
    except ImportError as error:
        raise UserError(
            "harness=true: needs lm-evaluation-harness: pip install 'llm_jax[evaluation]' (everything else "
            "works without it)"
        ) from error
    return lm_eval


class HarnessMethods:
    """The methods by which the library asks for scores and texts. `harness_model` makes an `LM` of them."""

    def __init__(
        self,
        opened: PretrainedModel,
        convention: HarnessConvention,
        batch_size: int | None = None,
        template: ChatTemplate | None = None,
    ):
        """template: of conversations, for `chat=true`."""
        super().__init__()
        self.template = template
        self.opened, self.convention = opened, convention
        self.scorer = Scorer(opened, batch_size=batch_size)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether it is what greedy decoding gives) of each continuation."""
        pairs = [self.convention.pair(*request.args) for request in requests]
        return [
            (float(np.sum(found.logprobs, dtype=np.float64)), bool(found.greedy.all()))
            for found in self.scorer.score(pairs)
        ]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each document in nats."""
        documents = [self.convention.rolling(request.args[0]) for request in requests]
        found = iter(self.scorer.score([window for windows in documents for window in windows]))
        return [
            sum(float(np.sum(next(found).logprobs, dtype=np.float64)) for _ in windows)
            for windows in documents
        ]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to a stop string."""
        asked = [self.generation(*request.args) for request in requests]
        if not asked:
            return []
        longest = max(len(request.ids) + request.max_tokens for request in asked)
        engine = Engine.of(self.opened, min(SLOTS, len(asked)), longest, log=log_to_stderr)
        return [result.text for result in engine.generate(asked)]

    def apply_chat_template(self, chat_history: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, up to where its next turn begins; or, without add_generation_prompt, to
        the end of what its last turn says."""
        assert self.template is not None
        text = self.template.render(chat_history, add_generation_prompt=add_generation_prompt).text
        if add_generation_prompt:
            return text
        said = str(chat_history[-1]["content"]).strip()
        return text[: text.rindex(said) + len(said)]

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's source, for the library's record of an evaluation."""
        return self.template.source if self.template else ""

    @property
    def tokenizer_name(self) -> str:
        """What the library tells caches of prompts apart by."""
        return self.opened.tokenizer.fingerprint

    def generation(self, context: str, settings: Mapping[str, Any]) -> Request:
        """The engine's request. Raises UserError for settings that it doesn't have."""
        given = {name: value for name, value in settings.items() if value is not None}
        stop = given.pop("until", [])
        new = next((given.pop(name) for name in LENGTHS if name in given), MOST_TOKENS)
        for name in LENGTHS:
            given.pop(name, None)
        temperature = float(given.pop("temperature", 0.0))
        if not given.pop("do_sample", temperature > 0):
            temperature = 0.0
            given = {name: value for name, value in given.items() if name not in SAMPLING}
        known = {name: given.pop(name) for name in SAMPLING if name in given}
        if given:
            name = next(iter(given))
            raise UserError(f"generation_kwargs.{name}={given[name]}: the engine has no such setting")
        return Request(
            ids=self.convention.prompt(context, new),
            max_tokens=new,
            temperature=temperature,
            stop=tuple(filter(None, [stop] if isinstance(stop, str) else stop)),
            **known,
        )


def harness_model(
    opened: PretrainedModel,
    convention: HarnessConvention,
    batch_size: int | None = None,
    template: ChatTemplate | None = None,
) -> Any:
    """The model as an `lm_eval.api.model.LM`."""
    library()
    from lm_eval.api.model import LM  # an optional extra

    return type("HarnessModel", (HarnessMethods, LM), {})(opened, convention, batch_size, template)


def convention_of(opened: PretrainedModel, bos_twice: bool = False) -> HarnessConvention:
    """The harness's convention for a model: BOS as its training put it. Raises UserError without a
    tokenizer."""
    tokenizer, model, train = opened.tokenizer, opened.config, opened.experiment.train
    trained_here = opened.folder is None
    length = (
        max(model.positions, train.sequence_length)
        if trained_here and model.position == "rope"
        else (model.positions)
    )
    bos = tokenizer.bos_id if trained_here or tokenizer.puts_bos else None
    control = not trained_here and not splits_control(opened.path)
    return HarnessConvention(tokenizer, bos, tokenizer.bos_id, length, bos_twice, control)


def splits_control(folder: Path) -> bool:
    """Whether transformers reads the names of control tokens in a text as text, by a model folder's files."""
    config = tree_of(tokenizer_folder(folder) / TOKENIZER_CONFIG, str(folder))
    return config.get("split_special_tokens") is True


def run_harness(
    open_it: Callable[[], PretrainedModel],
    files: Sequence[Path],
    *,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    bos_twice: bool = False,
    chat: bool = False,
) -> dict[str, Any]:
    """The results of the library's `simple_evaluate` for task files (YAML), with its samples.

    open_it: opens the model, once the files are known to be there. chat: prompts are conversations in the
    model's chat template, each shot a turn and its answer. Data files are found from the first
    file's folder. Raises UserError for files that it can't use.
    """
    for file in files:
        if not file.is_file():
            raise UserError(f"tasks={file}: there is no such file; harness=true takes task files (.yaml)")
    names = [task_name(file) for file in files]
    lm_eval = library()
    from lm_eval.tasks import TaskManager  # an optional extra

    opened = open_it()
    convention = convention_of(opened, bos_twice)
    template = template_of(opened.path, opened.experiment, "chat", NO_TEMPLATE) if chat else None
    log_to_stderr(convention.line + (", in the model's chat template" if chat else ""))
    folders = sorted({str(file.resolve().parent) for file in files})
    manager = TaskManager(include_path=folders, include_defaults=False)
    before = Path.cwd()
    os.chdir(folders[0])
    try:
        found = lm_eval.simple_evaluate(
            model=harness_model(opened, convention, batch_size, template),
            tasks=names,
            num_fewshot=shots,
            limit=limit,
            apply_chat_template=chat,
            task_manager=manager,
        )
    finally:
        os.chdir(before)
    found["config"] |= {"convention": convention.line, "lm_eval_version": lm_eval.__version__}
    # through JSON: what it has no form for (functions of tasks, numpy's numbers) becomes text
    return json.loads(json.dumps(found, default=str))


def print_results(found: Mapping[str, Any]) -> None:
    """Prints a line for each metric of each task, with the harness's standard error."""
    made = table("task", "metric", ">value", ">stderr", ">n")
    for task, metrics in found["results"].items():
        samples = found.get("n-samples", {}).get(task, {}).get("effective", "")
        for name, value in metrics.items():
            metric, _, filtered = name.partition(",")
            if isinstance(value, int | float) and filtered and not metric.endswith("_stderr"):
                error = metrics.get(f"{metric}_stderr,{filtered}")
                shown = f"{error:.4f}" if isinstance(error, float) else ""
                made.add_row(task, metric, f"{value:.4f}", shown, str(samples))
    make_console().print(made)


def task_name(file: Path) -> str:
    """The name of the task in a file. Raises UserError where there is none."""
    for line in file.read_text().splitlines():
        if line.startswith("task:"):
            return line.removeprefix("task:").split("#")[0].strip().strip("\"'")
    raise UserError(f"tasks={file}: names no task (a line `task: NAME`)")
