"""The command `python -m llm_jax.evaluate`: a model on its held-out text, on tasks, or on prompts."""

from __future__ import annotations

import dataclasses
import functools
import sys
from dataclasses import dataclass
from pathlib import Path

from llm_jax.core.arguments import Pairs, argument, part, passed_on, positional, read_command
from llm_jax.core.command import output_file, output_folder, run_command
from llm_jax.core.errors import UserError
from llm_jax.core.files import write_json
from llm_jax.evaluate.tasks_command import TaskArguments, run_tasks
from llm_jax.pretrained.arguments import ModelArguments

TRAIN_KEYS = ("train.batch_size", "train.sequence_length")
"""Keys of a run that change how its held-out documents are read."""


def output(key: str, value: str) -> Path:
    """The .json or .jsonl file that key=value names, or a folder. Raises UserError if it can't be written."""
    if value.endswith((".json", ".jsonl")):
        return output_file(key, value)
    return output_folder(key, value)


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Held-out loss, perplexity and bits per byte of a model, or its scores on tasks: python -m
    llm_jax.evaluate RUN_OR_FOLDER key=value ...

      python -m llm_jax.evaluate runs/quickstart/default
      python -m llm_jax.evaluate runs/quickstart/default data.source=german.jsonl tokens=100000
      python -m llm_jax.evaluate runs/quickstart/default layout=fsdp_tensor mesh.tensor=2 dtype=bfloat16
      python -m llm_jax.evaluate runs/quickstart/default step=500 out=scores.json
      python -m llm_jax.evaluate runs/quickstart/default tasks=core,german,numbers,code limit=200 out=scores.json
      python -m llm_jax.evaluate ~/models/SmolLM2-135M tasks=arc_easy,mine/questions.jsonl shots=5
      python -m llm_jax.evaluate runs/sft/default answers=500
      python -m llm_jax.evaluate runs/dpo/default
      python -m llm_jax.evaluate runs/sft/default data.source=task_pairs data.held_out_fraction=0.99 answers=4000 pairs=pairs.jsonl
      python -m llm_jax.evaluate runs/reward/default rewards=answers.jsonl out=scored.jsonl

    Exit codes: 0 done, 2 a mistake in the command line (one line names it).
    """  # noqa: E501

    folder: Path = positional("RUN_OR_FOLDER")
    """A run folder, a Hugging Face model folder or a GGUF file."""
    data: Pairs = passed_on(lambda name: name.startswith(("data.", "chat.")), "data.KEY=VALUE")
    """The corpus, with the keys of a run: its held-out documents are scored (data.held_out_fraction=0.99
    makes that nearly all of a text). Without any, the run's own corpus, which gives the loss in its
    summary.json. Conversations are scored as they are trained (data.train_on, chat.template), preferences and
    answers with labels by the run's own objective."""
    train: Pairs = passed_on(lambda name: name in TRAIN_KEYS, "train.KEY=VALUE")
    """train.batch_size and train.sequence_length, instead of the run's. Longer sequences give each token more
    of its document."""
    tokens: int | None = argument(None, least=1)
    """Maximum tokens to score, rounded up to whole batches."""
    batches: int | None = argument(None, least=1)
    """Maximum batches to score."""
    answers: int | None = argument(None, least=1)
    """Answers the prompts of so many held-out conversations instead, with the most likely tokens, and prints
    how many answers are right, by the verifiers of the records, with 95% intervals."""
    pairs: Path | None = argument(
        None, shown="FILE.jsonl", read=functools.partial(output_file, endings=(".jsonl",))
    )
    """With answers=N: writes a preference for each prompt to which a sample is wrong, of the right answer to
    the most frequent wrong one, for experiment=dpo."""
    samples: int | None = argument(None, least=1)
    """With pairs=: answers to each prompt (4, if not given). With tasks= and execute=true: programs for each
    item (one, the most likely text, if not given), for pass@k."""
    temperature: float | None = argument(None, above=0)
    """With samples= of pairs= or tasks=: logits are divided by it (by 1, if not given)."""
    rewards: Path | None = argument(None, shown="FILE.jsonl")
    """For a reward model (experiment=reward): scores the records of this file instead. A record has text,
    messages, prompt and completion, or prompt, chosen and rejected."""
    out: Path | None = argument(None, shown="FILE.json", read=output)
    """Writes the scores there too; with rewards= the records with their rewards, an object a line. With
    tasks= it may be a folder: for the samples too, which else are in RUN/evaluations/STEP."""
    tasks: TaskArguments = part(TaskArguments)
    model: ModelArguments = part(ModelArguments)

    def check(self) -> None:
        """Raises UserError where the amount is given twice, and for keys that rewards= excludes."""
        if self.pairs and not self.answers:
            raise UserError(f"pairs={self.pairs}: of how many prompts? Add answers=N")
        if self.tasks.tasks:
            self.check_tasks()
        elif self.out and self.out.suffix not in (".json", ".jsonl"):
            raise UserError(f"out={self.out}: must be a file that ends in .json or .jsonl")
        elif not self.pairs and (self.samples or self.temperature):
            raise UserError(
                "samples=, temperature=: have an effect only with pairs=FILE.jsonl or tasks=. Add that, or "
                "leave these out"
            )
        if self.pairs and self.out:
            raise UserError(f"out={self.out}: has no effect beside pairs={self.pairs}. Leave it out")
        if self.rewards and self.answers:
            raise UserError(
                f"answers={self.answers}: has no effect beside rewards={self.rewards}. Leave it out"
            )
        if self.answers and (self.tokens or self.batches):
            raise UserError(f"answers={self.answers}: has no tokens or batches to limit. Leave these out")
        if self.rewards:
            given = [key for key, _ in (*self.data, *self.train)]
            given += [key for key in ("tokens", "batches") if getattr(self, key)]
            if given:
                raise UserError(f"{given[0]}=: has no effect beside rewards={self.rewards}. Leave it out")
        if self.tokens and self.batches:
            raise UserError(
                f"tokens={self.tokens}: batches={self.batches} limits the same thing; give one of them"
            )

    def check_tasks(self) -> None:
        """Raises UserError for keys that have no effect beside tasks=."""
        given = [key for key, _ in (*self.data, *self.train)]
        names = ("tokens", "batches", "answers", "pairs", "rewards")
        given += [name for name in names if getattr(self, name)]
        if given:
            raise UserError(f"{given[0]}=: has no effect beside tasks={self.tasks.tasks}. Leave it out")
        if self.temperature and (self.samples or 1) == 1:
            raise UserError(f"temperature={self.temperature:g}: has an effect only with samples=N. Add that")
        if self.samples and not self.tasks.execute:
            raise UserError(f"samples={self.samples}: has an effect only with execute=true. Add that")
        if self.out and self.out.suffix == ".jsonl":
            raise UserError(f"out={self.out}: must be a .json file, or a folder for the samples too")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(evaluate, arguments)


def evaluate(arguments: list[str]) -> int:
    """Reads the command line, scores the model and prints the scores. Raises UserError."""
    command = read_command(arguments, EvaluateCommand)
    if command is None:
        return 0

    if command.tasks.tasks:
        return run_tasks(
            command.folder,
            command.tasks,
            command.model,
            command.out,
            command.samples or 1,
            command.temperature or 1.0,
        )
    if command.answers:
        return verify_answers(command, command.answers)
    if command.rewards:
        return score_rewards(command, command.rewards)

    from llm_jax.evaluate import own_objective  # these import JAX, which `run_command` sets up
    from llm_jax.evaluate.held_out import score, table
    from llm_jax.pretrained.source import open_source

    options = command.model.options()
    changes = [*command.data, *command.train]
    source = open_source(command.folder, adapter=options["adapter"])
    if own_objective.has_own_scores(source, changes):
        del options["adapter"]
        own = own_objective.score_own(
            source, changes, tokens=command.tokens, batches=command.batches, **options
        )
        print(own_objective.table(own))
        if command.out:
            write_json(command.out, own.to_json())
            print(f"written: {command.out}")
        return 0
    scores = score(
        command.folder,
        changes,
        tokens=command.tokens,
        batches=command.batches,
        **options,
    )
    print(table(scores))
    if command.out:
        write_json(command.out, dataclasses.asdict(scores))
        print(f"written: {command.out}")
    return 0


def verify_answers(command: EvaluateCommand, count: int) -> int:
    """Answers held-out prompts, and prints and writes how many answers are right. Raises UserError."""
    from llm_jax.evaluate.answers import answer_held_out, table  # imports JAX
    from llm_jax.evaluate.pairs import make_pairs, write_pairs

    changes, options = [*command.data, *command.train], command.model.options()
    if command.pairs:
        made = make_pairs(
            command.folder, changes, count, command.samples or 4, command.temperature or 1.0, **options
        )
        print(made)
        write_pairs(command.pairs, made)
        print(f"written: {command.pairs}")
        return 0
    found = answer_held_out(command.folder, changes, count, **options)
    print(table(found))
    if command.out:
        write_json(command.out, found.to_json())
        print(f"written: {command.out}")
    return 0


def score_rewards(command: EvaluateCommand, file: Path) -> int:
    """Scores the records of a file with a reward model, and prints and writes the rewards. Raises
    UserError."""
    from llm_jax.evaluate.rewards import score_file, table, write_rewards  # imports JAX

    found = score_file(command.folder, file, **command.model.options())
    if command.out:
        write_rewards(command.out, found)
        print(f"{table(found)}\nwritten: {command.out}")
        return 0
    for record in found.records:
        shown = [record[name] for name in ("reward", "chosen_reward", "rejected_reward") if name in record]
        print("  ".join(f"{value:10.4f}" for value in shown))
    print(table(found), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
