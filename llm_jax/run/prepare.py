"""Before a run trains: its devices, its corpus and its model, checked in the order of what each
check costs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_jax import data
from llm_jax import experiment as experiments
from llm_jax.core.errors import UserError
from llm_jax.core.files import check_writable
from llm_jax.data.encoder import EncoderSettings
from llm_jax.experiment import Experiment
from llm_jax.layout.check import check_model
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.model import transformer
from llm_jax.objective.protocol import Examples
from llm_jax.processes.collective import broadcast_from_first, run_on_all
from llm_jax.processes.group import Group
from llm_jax.run import initial_weights, run_folder
from llm_jax.run.frozen import frozen_models, precomputed_models
from llm_jax.train.state import TrainModel

TaskScores = Callable[[Any, Callable[[], bool]], dict[str, float] | None]
"""(parameters, stopped) → scores by their names in metrics.jsonl; None where `stopped` returned True."""


@dataclass(frozen=True)
class RunServices:
    """What a command gives to its runs."""

    prepare: Callable[..., data.Corpus] | None = None
    """In place of `data.prepare`: a cache that several runs of one process share."""
    peak: Callable[..., float | None] | None = None
    """In place of `train.peak_flops.device_peak`, likewise."""
    tasks: Callable[[RunPlan, Callable[[str], None]], TaskScores] | None = None
    """Makes the evaluation on the tasks of `evaluate.tasks`, which is in a room above
    (evaluate/in_training.py). Gets the run's log."""


NO_SERVICES = RunServices()


@dataclass(frozen=True)
class RunPlan:
    """One run, ready to be trained."""

    experiment: Experiment
    """With its vocabulary, and room in fused attention for the documents of its rows."""
    model: TrainModel
    corpus: data.Corpus
    examples: Examples
    """The batches, as the objective makes them from the corpus."""
    frozen: Mapping[str, TrainModel]
    """The objective's frozen models, by role."""
    precomputed: Mapping[str, TrainModel] = field(default_factory=dict)
    """The models that give log-probabilities to the data before the first step, by role."""
    label: str = ""
    """Before each line about this run, where several are trained at once."""

    @property
    def run_dir(self) -> Path:
        return Path(self.experiment.run_dir)

    @property
    def place(self) -> MeshPlacement:
        return self.model.place


def make_plan(experiment: Experiment, place: MeshPlacement, corpus: data.Corpus, label: str = "") -> RunPlan:
    """The plan of an experiment whose vocabulary is known.

    Raises UserError for a model that the layout can't split, and for what else the objective can't train
    with.
    """
    check_layout(experiment, place)
    examples = experiment.objective.examples(corpus, experiment.train)
    experiment = with_max_segments(experiment, corpus, place)
    model = TrainModel(
        experiment.model,
        experiment.optimizer,
        place,
        experiment.train.ema_decay,
        experiment.train.trainable,
        experiment.adapter,
    )
    frozen = frozen_models(experiment, model, corpus.tokenizer)
    precomputed = precomputed_models(experiment, model, corpus.tokenizer)
    return RunPlan(experiment, model, corpus, examples, frozen, precomputed, label)


def with_vocabulary_of(experiment: Experiment, corpus: data.Corpus) -> Experiment:
    """The experiment with the vocabulary of its corpus's tokenizer."""
    return dataclasses.replace(experiment, model=experiment.model.resolved(corpus.tokenizer.vocab_size))


def prepare_corpus(
    experiment: Experiment, services: RunServices, group: Group, log: Callable[[str], None]
) -> data.Corpus:
    """The corpus that the experiment asks for.

    The first process builds what the cache doesn't have yet; then one on every other host does, where the
    cache is another one; and the rest find all of it.

    Raises UserError, naming a host, where it has other documents than the first.
    """
    documents, tokenizer, more = corpus_settings(experiment)

    def prepare() -> data.Corpus:
        return (services.prepare or data.prepare)(documents, tokenizer, run_dir=None, log=log, **more)

    group.mark("data")
    rank, local_rank = group.task.rank, group.task.local_rank
    turns = (rank == 0, rank > 0 and local_rank == 0, rank > 0 and local_rank > 0)
    made = [run_on_all(group, f"corpus, turn {i}", prepare, runs=mine) for i, mine in enumerate(turns)]
    corpus = next(corpus for corpus in made if corpus is not None)
    (first, name), *others = group.exchange("corpus", [corpus.fingerprint, group.task.name])
    for fingerprint, other in others:
        if fingerprint != first:
            raise UserError(
                f"data.source={experiment.data.source}: {other} has other documents (fingerprint "
                f"{fingerprint[:12]}) than {name} ({first[:12]}); "
                "give all hosts the same"
            )
    return corpus


def corpus_settings(
    experiment: Experiment,
) -> tuple[data.DataConfig, data.TokenizerConfig, dict[str, Any]]:
    """The arguments of `data.prepare` for the corpus of an experiment."""
    objective, documents = experiment.objective, experiment.data
    if objective.reads == "record":
        documents = dataclasses.replace(documents, text_key=data.WHOLE_RECORD)
    more: dict[str, Any] = {
        "sequence_length": experiment.train.sequence_length,
        "batch_size": experiment.train.batch_size,
        "seed": experiment.train.seed,
    }
    if (encoder := objective.encoder(encoder_settings(experiment))) is not None:
        more["encoder"] = encoder
    if objective.rows != "cut":
        more["rows"] = objective.rows
    return documents, initial_weights.with_own_tokenizer(experiment), more


def encoder_settings(experiment: Experiment) -> EncoderSettings:
    """What the encoder of the experiment's objective may depend on."""
    return EncoderSettings(
        experiment.train.sequence_length,
        initial_weights.with_own_tokenizer(experiment),
        experiment.data,
        initial_weights.with_own_template(experiment),
    )


def check_folder(experiment: Experiment, group: Group) -> dict[str, Any]:
    """The summary of the last start in the run folder (empty if there was none).

    Raises UserError where this run can't live there.
    """

    def check() -> dict[str, Any]:
        run_dir = Path(experiment.run_dir)
        check_writable(run_dir)
        initial_weights.check_folder(experiment)
        run_folder.check_same_run(
            run_dir,
            experiments.to_yaml(experiment),
            open_keys=("model.vocab",) if experiment.model.vocab is None else (),
        )
        return run_folder.last_summary(run_dir)

    return broadcast_from_first(group, "run folder", check)


def is_finished(experiment: Experiment, last: Mapping[str, Any]) -> bool:
    """Whether a last start with this summary did all steps."""
    return last.get("state") == "finished" and (last.get("step") or 0) >= experiment.train.steps


def place_of(experiment: Experiment) -> MeshPlacement:
    """Where arrays live on the devices that are here.

    Raises UserError for what can't run on them, before anything is read or compiled.
    """
    place = MeshPlacement(experiment.layout, make_mesh(experiment.layout, experiment.mesh))
    check_layout(experiment, place)
    transformer.check(experiment.model, place, experiment.train.sequence_length)
    return place


def check_layout(experiment: Experiment, place: MeshPlacement) -> None:
    """Raises UserError for a batch or a model that the layout can't split."""
    train = experiment.train
    batch_key = "train.batch_size" + ("/train.microbatches" if train.microbatches > 1 else "")
    length = (train.sequence_length, "train.sequence_length")
    check_model(
        experiment.model,
        place,
        {"batch": (train.batch_size // train.microbatches, batch_key), "sequence": length, "keys": length},
    )


def with_max_segments(experiment: Experiment, corpus: data.Corpus, place: MeshPlacement) -> Experiment:
    """The experiment with room in fused attention for the documents of every row that the run will see.

    UserError where `model.max_segments` is given and too small.
    """
    model, train = experiment.model, experiment.train
    if model.attention != "cudnn":
        return experiment
    rows = train.batch_size // place.size(place.axes("batch"))
    steps = train.steps + train.rollback.most_skipped
    needed = corpus.max_documents_per_row(steps=steps, group=rows // train.microbatches, held_out_group=rows)
    if model.max_segments is not None and model.max_segments < needed:
        raise UserError(
            f"model.max_segments={model.max_segments}: the packed rows of this run hold up to {needed} "
            "documents each, on average over a device's "
            f"rows; use model.max_segments={needed}, or null to have them counted"
        )
    return dataclasses.replace(
        experiment, model=dataclasses.replace(model, max_segments=model.max_segments or needed)
    )
