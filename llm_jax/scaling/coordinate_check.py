"""The command `python -m llm_jax.scaling.coordinate_check`: checks that every place of a model learns at one
speed at all sizes."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import data
from llm_jax import experiment as experiments
from llm_jax.core.arguments import Pairs, argument, passed_on, read_command
from llm_jax.core.command import output_folder, run_command
from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.model.parametrization import of_width, residual_multiplier
from llm_jax.model.transformer import Transformer
from llm_jax.objective.next_token import NextToken
from llm_jax.objective.protocol import Batch
from llm_jax.run.initial_weights import with_command_line
from llm_jax.scaling.grid import Grid
from llm_jax.train.optimizer import OptimizerConfig, check_parametrization, make_schedule
from llm_jax.train.state import TrainModel
from llm_jax.train.step import make_step

PLACES = ("embedding", "attention", "mlp", "residual", "logits")
"""Places where activations are measured: the residual stream at the start, the outputs of the last block's
attention and feed-forward (before the residual multiplier), the stream at the end, and the logits."""

Models = dict[str, dict[int, ModelConfig]]
"""Parametrisation → size → model."""
Changes = dict[str, list[float]]
"""Place → root mean square of the change since the start, after each step."""


@dataclasses.dataclass(frozen=True)
class CoordinateCheck:
    """The changes of activations that were measured."""

    of: str
    """"width" or "depth"."""
    base: int
    """The size at which all parametrisations are the standard one."""
    changes: dict[str, dict[int, Changes]]
    """Parametrisation → size → place → root mean square change after each step."""

    @property
    def sizes(self) -> list[int]:
        """The sizes of the models, ascending."""
        return sorted(next(iter(self.changes.values())))

    def slopes(self, parametrization: str) -> dict[str, list[float]]:
        """Place → d log(change) / d log(size), by least squares over all sizes, after each step."""
        by_size = self.changes[parametrization]
        logs_S = np.log([float(size) for size in self.sizes])
        return {
            place: [
                float(np.polyfit(logs_S, np.log(step), 1)[0])
                for step in zip(*(by_size[size][place] for size in self.sizes), strict=True)
            ]
            for place in PLACES
        }

    def as_json(self) -> dict[str, Any]:
        """The content of coordinate_check.json: changes and slopes."""
        slopes = {name: self.slopes(name) for name in self.changes}
        return {
            "of": self.of,
            "base": self.base,
            "sizes": self.sizes,
            "changes": self.changes,
            "slopes": slopes,
        }


def activations(model: Transformer, batch: Batch) -> dict[str, jax.Array]:
    """Place → activations, by calling the parts of a model on one device in turn."""
    x_BTD = model.embed(batch["tokens"], batch["positions"])
    result = {"embedding": x_BTD}
    for _, block, _ in model.layers_in_order():
        rope = block.attention.rope(batch["positions"])
        attention_BTD = block.attention_branch(
            x_BTD, functools.partial(block.attention, rope=rope, segments_BT=batch["segments"])
        )
        attended_BTD = x_BTD + attention_BTD
        mlp_BTD, _ = block.mlp_branch(x_BTD if model.config.parallel_blocks else attended_BTD)
        x_BTD = attended_BTD + mlp_BTD
    undo_multiplier = 1 / residual_multiplier(model.config)
    return result | {
        "attention": attention_BTD * undo_multiplier,
        "mlp": mlp_BTD * undo_multiplier,
        "residual": x_BTD,
        "logits": model.logits(model.finish(x_BTD)),
    }


def measure(model: ModelConfig, optimizer: OptimizerConfig, batches: list[Batch], probe: Batch) -> Changes:
    """Takes a step on each batch and returns the changes of activations on the batch `probe`. Arrays of a
    batch are [B, T]."""
    layout = preset("single")
    program = TrainModel(model, optimizer, MeshPlacement(layout, make_mesh(layout, {})))
    step_of = make_step(program, NextToken(), make_schedule(optimizer, len(batches)), optimizer.clip_norm)
    step = program.jit(step_of, donate_argnums=0)
    take = program.jit(lambda parameters, batch: activations(program.model(parameters), batch))
    change = program.jit(
        lambda now, start: jax.tree.map(
            lambda a, b: jnp.sqrt(jnp.mean(jnp.square((a - b).astype(jnp.float32)))), now, start
        )
    )
    put = functools.partial(on_device, program.place)
    result: Changes = {place: [] for place in PLACES}
    with jax.set_mesh(program.place.mesh):
        state, probe = program.new_state(0), put(probe, ())
        start = take(state.parameters, probe)
        for batch in batches:
            state, _ = step(state, put(batch, (None,)))
            for place, size in change(take(state.parameters, probe), start).items():
                result[place].append(float(size))
    return result


def on_device(place: MeshPlacement, batch: Any, first: tuple[None, ...]) -> Any:
    """A batch [B, T] on the device, with a leading dim of 1 for each entry of `first`."""
    sharding = place.sharding((*first, "batch", "sequence"), "compute")
    return {
        name: jax.device_put(np.asarray(value)[(None,) * len(first)], sharding)
        for name, value in batch.items()
    }


def models_by_width(model: ModelConfig, widths: list[int]) -> Models:
    """The models of several widths that are compared: standard and muP, or the resolved model's own
    parametrisation."""
    name = "mup" if model.parametrization == "standard" else model.parametrization
    base: dict[str, Any] = {
        "base_embed": model.base_embed or widths[0],
        "base_layers": model.base_layers or model.layers,
    }
    made = {width: dataclasses.replace(of_width(model, width), **base) for width in widths}
    return {name: with_parametrization(made, name) for name in ("standard", name)}


def models_by_depth(model: ModelConfig, depths: list[int]) -> Models:
    """The models of several depths that are compared, standard and CompleteP. Raises UserError for muP, which
    scales widths only."""
    if model.parametrization == "mup":
        raise UserError(
            "model.parametrization=mup: scales widths only, but depths= compares standard and completep. "
            "Use model.parametrization=completep."
        )
    base: dict[str, Any] = {
        "base_embed": model.base_embed or model.embed,
        "base_layers": model.base_layers or depths[0],
    }
    made = {depth: dataclasses.replace(model, layers=depth, **base) for depth in depths}
    return {name: with_parametrization(made, name) for name in ("standard", "completep")}


def with_parametrization(models: dict[int, ModelConfig], name: Any) -> dict[int, ModelConfig]:
    """The models with another parametrisation."""
    return {size: dataclasses.replace(model, parametrization=name) for size, model in models.items()}


def check(
    of: str, models: Models, optimizer: OptimizerConfig, batches: list[Batch], probe: Batch
) -> CoordinateCheck:
    """Measures all models; the learning rate is constant, without warm-up. of: "width" or "depth"."""
    optimizer = dataclasses.replace(optimizer, schedule="constant", warmup_steps=0)
    changes = {
        name: {size: measure(model, optimizer, batches, probe) for size, model in by_size.items()}
        for name, by_size in models.items()
    }
    some = next(iter(models["standard"].values()))
    base = some.base_embed if of == "width" else some.base_layers
    assert base
    return CoordinateCheck(of, base, changes)


def draw(result: CoordinateCheck, path: Path, title: str) -> None:
    """Writes the figure: a row for each parametrisation, a column for each place, a line for each step; both
    axes logarithmic."""
    from matplotlib.figure import Figure

    names, steps = list(result.changes), len(next(iter(result.changes["standard"].values()))["logits"])
    figure = Figure(figsize=(2.5 * len(PLACES), 2.6 * len(names) + 0.5), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    grid = figure.subplots(len(names), len(PLACES), sharex=True, sharey="col", squeeze=False)
    for row, name in zip(grid, names, strict=True):
        slopes = result.slopes(name)
        for axes, place in zip(row, PLACES, strict=True):
            for step in range(steps):
                values = [result.changes[name][size][place][step] for size in result.sizes]
                shade = 0.25 + 0.75 * (step + 1) / steps
                axes.plot(
                    result.sizes,
                    values,
                    "o-",
                    markersize=3,
                    color=(0.12, 0.31, 0.47, shade),
                    label=f"step {step + 1}",
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_xticks(result.sizes, [str(size) for size in result.sizes])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
            axes.set_title(f"{place}, slope {slopes[place][-1]:+.2f}", fontsize=9)
        row[0].set_ylabel(f"{name}\nchange (RMS)")
    for axes in grid[-1]:
        axes.set_xlabel(result.of)
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(),
        loc="outside upper right",
        ncols=steps,
        frameon=False,
        fontsize=8,
    )
    figure.savefig(path, dpi=130)


def read_sizes(key: str, text: str) -> tuple[int, ...]:
    """The sizes of a list like 64,128,256, ascending. Raises UserError for fewer than two."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts) or len(set(map(int, parts))) < 2:
        raise UserError(f"{key}={text}: must be two or more different sizes, as in {key}=64,128,256")
    return tuple(sorted({int(part) for part in parts}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoordinateCheckCommand:
    """Checks that activations learn at one speed at all sizes (muP): python -m
    llm_jax.scaling.coordinate_check ...

      python -m llm_jax.scaling.coordinate_check experiment=scaling/mup_transfer widths=64,128,256,512
      python -m llm_jax.scaling.coordinate_check experiment=scaling/mup_transfer depths=2,4,8,16 out=mine

    Models of several widths (or depths) take a few steps, in the standard parametrisation and in muP (or
    CompleteP). After each step it measures the root mean square change of activations since the start, on one
    batch, at five places of the model. A place learns at one speed at all sizes if the slope of log(change)
    against log(size) is near 0 (Yang et al. 2022, appendix D.1). It runs on one device.

    Exit codes: 0 done, 2 a mistake in the command line (one line names it).
    """

    experiment: Pairs = passed_on(lambda name: True, "experiment=NAME")
    """The experiment with its overrides, as in llm_jax.launch: sets proportions, text and learning rate. Of a
    grid the base is used."""
    widths: tuple[int, ...] | None = argument(None, read=read_sizes)
    """Sizes of model.embed to compare; model.base_embed is the first, unless the experiment sets it."""
    depths: tuple[int, ...] | None = argument(None, read=read_sizes)
    """Instead: sizes of model.layers; model.base_layers is the first, unless the experiment sets it."""
    steps: int = argument(4, least=1)
    """Number of updates, all at the full learning rate."""
    out: Path = argument(Path("runs/coordinate_check"), shown="FOLDER", read=output_folder)
    """The folder for coordinate_check.png and .json."""

    def check(self) -> None:
        """Raises UserError unless either widths or depths are given."""
        if bool(self.widths) == bool(self.depths):
            raise UserError("widths=N,N,... or depths=N,N,... is missing. Give one of them.")


def run(arguments: list[str]) -> int:
    """Reads the command line, trains the models, and writes and prints the slopes. Raises UserError."""
    command = read_command(arguments, CoordinateCheckCommand)
    if command is None:
        return 0
    out, rest = output_folder("out", str(command.out)), list(command.experiment)
    name = experiments.experiment_name(rest)
    made = experiments.load_file(name)
    made = (
        experiments.named(made.base, name)
        if isinstance(made, Grid)
        else experiments.as_experiment(made, name)
    )
    experiment = with_command_line(made, rest)
    if experiment.train.start_from:
        raise UserError(
            f"train.start_from={experiment.train.start_from}: a coordinate check trains models from "
            "random weights. Leave it out."
        )
    of, sizes = ("width", command.widths) if command.widths else ("depth", command.depths)
    assert sizes
    result = check_experiment(experiment, of, list(sizes), command.steps)
    out.mkdir(parents=True, exist_ok=True)
    (out / "coordinate_check.json").write_text(json.dumps(result.as_json(), indent=1) + "\n")
    draw(
        result,
        out / "coordinate_check.png",
        f"Change of activations after each step against {result.of} ({experiment.name})",
    )
    for name in result.changes:
        slopes = ", ".join(f"{place} {steps[-1]:+.2f}" for place, steps in result.slopes(name).items())
        print(f"{name:<10} slopes against {of} after step {command.steps}: {slopes}")
    print(f"figure: {out / 'coordinate_check.png'}")
    return 0


def check_experiment(experiment: Experiment, of: str, sizes: list[int], steps: int) -> CoordinateCheck:
    """Checks an experiment's model on its text: steps on its first batches, changes measured on the batch
    after them."""
    make = models_by_width if of == "width" else models_by_depth
    for by_size in make(experiment.model, sizes).values():  # raises for mistakes before the text is read
        check_parametrization(experiment.optimizer, next(iter(by_size.values())))
    train = experiment.train
    corpus = data.prepare(
        experiment.data, experiment.tokenizer, sequence_length=train.sequence_length,
        batch_size=train.batch_size, seed=train.seed,
        run_dir=None, log=print,
    )  # fmt: skip
    batches: list[Any] = [corpus.batch(step) for step in range(steps + 1)]
    return check(
        of,
        make(experiment.model.resolved(corpus.tokenizer.vocab_size), sizes),
        experiment.optimizer,
        batches[:-1],
        batches[-1],
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
