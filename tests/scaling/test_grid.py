"""The algebra of overrides, the designs that it makes, and what a grid's command line may say."""

from __future__ import annotations

import dataclasses
import math

import pytest

from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment
from llm_jax.model import accounting
from llm_jax.model.config import ModelConfig
from llm_jax.run.run_folder import configuration_hash
from llm_jax.scaling.designs import (
    PowerRule,
    aspect,
    chinchilla_sizes,
    fit_rule,
    geometric,
    horizons,
    isoflop,
    ladder,
    learning_rate,
    mup_transfer,
    neighbours,
    refill_sizes,
    sizes,
    sweep,
    warmup_fraction,
    warmup_per_parameter,
    warmup_tokens,
)
from llm_jax.scaling.grid import Grid, GridConfig, chain, filtered, over, product, zipped
from llm_jax.train.config import TrainConfig
from tests.scaling.tiny_grid import write_grid
from tests.tiny_run import launch

BASE = Experiment(
    name="base",
    model=ModelConfig(layers=2, embed=32, heads=4, vocab=512),
    train=TrainConfig(batch_size=4, sequence_length=32),
)
SIZES = [{"model.embed": width} for width in (16, 32, 64, 128, 256)]


def test_algebra():
    a, b = over("model.layers", [1, 2]), over("train.seed", [5, 6])
    assert [tuple(p.values()) for p in product(a, b)] == [(1, 5), (1, 6), (2, 5), (2, 6)]
    assert [tuple(p.values()) for p in zipped(a, b)] == [(1, 5), (2, 6)]
    assert chain(a, b) == [*a, *b]
    assert filtered(product(a, b), lambda p: sum(p.values()) == 7) == [
        {"model.layers": 1, "train.seed": 6},
        {"model.layers": 2, "train.seed": 5},
    ]
    with pytest.raises(UserError, match="2, 3 overrides, but they must have equally many"):
        zipped(a, over("train.seed", range(3)))
    with pytest.raises(UserError, match=r"model\.layers: is set by two parts"):
        product(a, a)


@pytest.mark.parametrize("convention", accounting.CONVENTIONS)
def test_isoflop_points_spend_their_budget_in_the_named_convention(convention):
    points = Grid(BASE, isoflop([1e11, 4e11], SIZES, convention=convention)).points([])
    assert len(points) == 10
    n_column, c_column = accounting.columns(convention)
    for point in points:
        counted = accounting.account(point.experiment.model, 32, point.tokens)
        per_step = counted[c_column] / point.experiment.train.steps
        assert abs(counted[c_column] - point.budget) <= 0.5 * per_step  # a whole number of steps
        assert point.convention == convention
        assert point.cost == counted["flops_exact"]
    assert len({accounting.parameters(p.experiment.model)[n_column] for p in points}) == 5


def test_isoflop_curves_are_centred_where_tokens_a_parameter_are_as_told():
    points = Grid(BASE, isoflop([3e11, 1e13], SIZES, per_curve=3, tokens_per_parameter=20)).points([])
    for budget in (3e11, 1e13):
        curve = [p for p in points if p.budget == budget]
        assert len(curve) == 3
        ratio = [p.tokens / accounting.size(p.experiment.model, "6nd_with_head") for p in curve]
        assert ratio[0] > 20 > ratio[2]
    assert neighbours(0, 3, 5) == (0, 2)
    assert neighbours(4, 3, 5) == (2, 4)
    assert neighbours(2, 9, 5) == (0, 4)


def run_of(point, loss, status="finished"):
    """A row of a point that has run."""
    return {
        **accounting.account(point.experiment.model, 32, point.tokens),
        "flops_budget": point.budget,
        "status": status,
        "eval_loss": loss,
    }


def test_a_minimum_at_the_edge_is_refilled_until_it_is_inside_or_the_rounds_are_over():
    grid = Grid(
        BASE, isoflop([1e11], SIZES, per_curve=3, tokens_per_parameter=1e9, refills=2)
    )  # so much too small a centre
    table, losses = [], {16: 5.0, 32: 4.0, 64: 3.0, 128: 3.5, 256: 9.0}
    rounds = []
    while len(points := grid.points(table)) > len(table):
        rounds.append([p.experiment.model.embed for p in points[len(table) :]])
        table += [run_of(p, losses[p.experiment.model.embed]) for p in points[len(table) :]]
    assert rounds == [[16, 32, 64], [128]]
    losses = {
        16: 5.0,
        32: 4.0,
        64: 3.0,
        128: 2.0,
        256: 1.0,
    }  # no minimum at all: bounded by the rounds, and by the sizes
    assert [
        p.experiment.model.embed
        for p in grid.points([run_of(p, losses[p.experiment.model.embed]) for p in points])
    ] == [16, 32, 64, 128, 256]
    assert refill_sizes(2, 3, {2: 1.0, 3: 2.0}, among=5, refills=1) == [1]
    assert refill_sizes(2, 3, {2: 1.0, 3: 2.0, 1: 0.5}, among=5, refills=1) == [1]
    assert refill_sizes(2, 3, {2: 1.0, 3: 2.0, 1: 0.5}, among=5, refills=9) == [1, 0]
    assert refill_sizes(2, 3, {2: 1.0}, among=5, refills=9) == []  # not all have run
    assert (
        refill_sizes(2, 4, {2: math.inf, 3: 2.0, 4: 3.0}, among=5, refills=9) == []
    )  # a diverged edge is no minimum
    assert refill_sizes(2, 3, {2: math.inf, 3: math.inf}, among=5, refills=9) == []


def test_an_unfinished_curve_is_not_refilled():
    grid = Grid(BASE, isoflop([1e11], SIZES, per_curve=3, tokens_per_parameter=1e9))
    rows = [run_of(p, 9.0 - i, "finished" if i else "unfinished") for i, p in enumerate(grid.points([]))]
    assert len(grid.points(rows)) == 3


def test_ready_made_designs():
    per_step = 4 * 32
    of_sizes = Grid(BASE, horizons(SIZES[:2], [1280, 2560])).points([])
    assert [(p.experiment.model.embed, p.experiment.train.steps) for p in of_sizes] == [
        (16, 10),
        (16, 20),
        (32, 10),
        (32, 20),
    ]
    for point in Grid(BASE, ladder(SIZES[:2], [5, 20], "6nd_non_embedding")).points([]):
        n = accounting.size(point.experiment.model, "6nd_non_embedding")
        assert min(abs(point.tokens - ratio * n) for ratio in (5, 20)) <= per_step / 2
    points = Grid(BASE, sweep([1e-3, 2e-3], [2, 4], tokens=25600)).points([])
    assert {(p.experiment.train.batch_size, p.experiment.train.steps) for p in points} == {(2, 400), (4, 200)}
    assert {p.tokens for p in points} == {25600}
    based = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, mlp=64, base_embed=32))
    points = Grid(based, mup_transfer([32, 128], [1e-3, 2e-3])).points([])
    models = [p.experiment.model for p in points]
    assert [(m.parametrization, m.embed, m.heads, m.head_dim, m.mlp) for m in models[::2]] == [
        ("standard", 32, 4, 8, 64),
        ("standard", 128, 16, 8, 256),
        ("mup", 32, 4, 8, 64),
        ("mup", 128, 16, 8, 256),
    ]
    assert points[-1].name == "mup-128-0.002"
    assert Grid(BASE, chinchilla_sizes(0, 3)).points([])[2].experiment.model.embed == 640


def test_sizes_of_a_function_are_near_what_was_asked_for():
    made = sizes(aspect(ratio=32, head_dim=16), geometric(1e5, 1e7, 5))(BASE)
    counts = [
        accounting.size(Grid(BASE, [size]).points([])[0].experiment.model, "6nd_with_head") for size in made
    ]
    # widths are multiples of 16, so the smallest sizes are a quarter apart
    assert all(abs(math.log(n / m)) < 0.25 for n, m in zip(counts, geometric(1e5, 1e7, 5), strict=True)), (
        counts
    )
    assert all(size["model.heads"] * 16 == size["model.embed"] for size in made)


def test_rules_set_what_follows_from_a_point():
    rules = (warmup_per_parameter(1.0), learning_rate(PowerRule(3e-3, -0.5)))
    for point in Grid(BASE, isoflop([1e11], SIZES), rules).points([]):
        n = accounting.size(point.experiment.model, "6nd_with_head")
        assert point.experiment.optimizer.warmup_steps == math.ceil(n / 128)
        assert point.experiment.optimizer.learning_rate == pytest.approx(
            3e-3 * (n / 1e6) ** -0.5, rel=5e-3
        )  # three digits
    assert {
        p.experiment.optimizer.warmup_steps for p in Grid(BASE, SIZES, (warmup_tokens(1280),)).points([])
    } == {10}
    assert (
        Grid(BASE, [{"train.steps": 50}], (warmup_fraction(0.1),))
        .points([])[0]
        .experiment.optimizer.warmup_steps
        == 5
    )
    with pytest.raises(UserError, match=r"a rule sets train\.steps, which the design sets"):
        Grid(BASE, SIZES, (lambda e: {"train.steps": 5},)).points([])


def test_a_rule_is_fitted_from_a_sweep():
    true = PowerRule(2e-3, -0.4)
    rows = []
    for size in SIZES[:3]:
        model = Grid(BASE, [size]).points([])[0].experiment.model
        n = accounting.size(model, "6nd_with_head")
        best = 2e-3 * (n / 1e6) ** -0.4
        for factor in (-2, -1, 0, 1, 2):
            rate = best * 2**factor * 1.2
            rows.append(
                {
                    "parameters_with_head": n,
                    "learning_rate": rate,
                    "status": "finished",
                    "eval_loss": 3 + math.log(rate / best) ** 2,
                }
            )
    found = fit_rule(rows)
    assert (found.at_million, found.exponent) == pytest.approx((true.at_million, true.exponent), rel=1e-9)
    with pytest.raises(UserError, match="at the edge of its learning rates"):
        fit_rule([row for row in rows if row["learning_rate"] > 1e-2])
    with pytest.raises(UserError, match=r"1 size\(s\)"):
        fit_rule(rows[:5])
    lucky = [
        {**row, "eval_loss": row["eval_loss"] - 2 * (i % 5 == 0)} for i, row in enumerate(rows)
    ]  # one seed's luck, at the lowest rate
    assert fit_rule([*rows, *rows, *rows, *lucky]).exponent == pytest.approx(true.exponent, rel=0.1)
    with pytest.raises(UserError, match=r"several batch sizes \(8, 16\)"):
        fit_rule([{**row, "batch_size": 8 * (1 + i % 2)} for i, row in enumerate(rows)])


def test_points_that_are_the_same_run_are_one():
    assert (
        len(
            Grid(
                BASE, [{"model.embed": 64}, {"model.embed": 64, "point.name": "again"}, {"model.embed": 32}]
            ).points([])
        )
        == 2
    )


def test_hash_tells_apart_what_trains_differently_and_nothing_else():
    def changed(part, **values):
        return dataclasses.replace(BASE, **{part: dataclasses.replace(getattr(BASE, part), **values)})

    base = configuration_hash(BASE)
    assert base == configuration_hash(dataclasses.replace(BASE, name="other", run_dir="elsewhere"))
    assert base == configuration_hash(changed("checkpoint", every=7))
    assert base == configuration_hash(changed("train", microbatches=2))
    assert base == configuration_hash(changed("optimizer", weight_decay=0.1))
    for other in (
        changed("train", steps=7),
        changed("train", seed=1),
        changed("optimizer", learning_rate=1.0),
        changed("model", vocab=513),
    ):
        assert base != configuration_hash(other)
    open_ = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, vocab=None))
    closed = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, vocab=8192))
    assert configuration_hash(open_) == configuration_hash(
        closed
    )  # the tokenizer's size, which the run folder's config.yaml has


def test_a_grid_that_does_not_fit_together_is_refused():
    for wrong, message in (
        ({"method": "isoflops"}, "did you mean 'isoflop'"),
        ({"convention": "6n"}, "convention=6n"),
        ({"trunks": True}, "Use optimizer.schedule=wsd"),
    ):
        with pytest.raises(UserError, match=message):
            Grid(BASE, SIZES, **wrong).check()
    with pytest.raises(UserError, match="has no points"):
        Grid(BASE, []).points([])
    with pytest.raises(UserError, match=r"did you mean 'point\.name'"):
        Grid(BASE, [{"point.nam": "x"}]).points([])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: isoflop([0], SIZES), r"isoflop: budgets=\[0\]: must be one or more numbers above 0"),
        (lambda: isoflop([1e9], SIZES, per_curve=0), "isoflop: per_curve=0: must be at least 1"),
        (lambda: isoflop([1e9], []), r"grid base: sizes=\[\]: must be at least one"),
        (lambda: isoflop([1e6], SIZES), "1M FLOPs pay for .* steps of N = .* Use larger budgets"),
        (lambda: isoflop([1e9], sizes(aspect(), [])), r"sizes=\[\]: must be one or more numbers above 0"),
        (lambda: ladder(SIZES, [0]), r"ladder: tokens_per_parameter=\[0\]: must be one or more"),
        (lambda: horizons(SIZES, [-1]), r"horizons: tokens=\[-1\]: must be one or more"),
        (lambda: sweep([1e-3], [0]), r"sweep: batch_sizes=\[0\]: must be one or more"),
        (lambda: sweep([1e-3], tokens=-5), r"sweep: tokens=\[-5\]: must be one or more"),
        (lambda: 5, "a design must be a list of overrides such as .*, not 5"),
        (lambda: ["model.embed"], "a design must be a list of overrides such as"),
        (lambda: lambda base, table: 1 / 0, r"test_grid\.py:\d+: ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_file_gets_wrong_in_a_design_is_one_line(made, message):
    with pytest.raises(UserError, match=message) as raised:
        Grid(BASE, made()).points([])
    assert "\n" not in str(raised.value)


def test_a_rule_that_raises_is_named_by_its_line():
    with pytest.raises(UserError, match=r"test_grid\.py:\d+: KeyError"):
        Grid(BASE, SIZES, (lambda e: {}["no"],)).points([])


def test_a_held_out_point_is_no_point_of_the_design():
    with pytest.raises(UserError, match="embed16 is held out and also a point of the design"):
        Grid(BASE, SIZES, held_out=SIZES[:1]).points([])


def test_points_that_are_one_run_are_named():
    grid = Grid(BASE, [{"model.embed": 16}, {"model.embed": 16, "train.log_every": 3}, {"model.embed": 64}])
    assert len(grid.points([])) == 2
    assert grid.merged() == ["embed16-log_every3"]


def test_part_of_the_points():
    for text, numbers in (
        ("", range(5)),
        ("1:3", range(1, 3)),
        ("3:", range(3, 5)),
        (":9", range(5)),
        ("4", range(4, 5)),
    ):
        assert GridConfig(points=text).selected_numbers(5) == numbers
    with pytest.raises(UserError, match="selects none of the 5 points, which are numbered 0 to 4"):
        GridConfig(points="5").selected_numbers(5)


MISTAKES = {
    "grid.pionts=3:7": "did you mean 'grid.points'?",
    "pionts=3": "there is no key 'pionts'",
    "points=3": "did you mean 'grid.points'?",
    "grid.points=a": "must be a range as 3:7",
    "grid.points=9:12": "selects none of the 2 points",
    "grid.executor=slrum": "must be one of one_by_one, vmap",
    "grid.executor=together": "is named vmap now. Use grid.executor=vmap.",
    "grid.mfu=2": "above 0 and at most 1",
    "grid.mfu=fast": "must be a number",
    "grid.at_once=0": "at least 1",
    "grid.devices=0": "at least 1",
    "grid.hardware=h10": "did you mean 'h100'?",
    "train.stepz=3": "did you mean 'train.steps'?",
    "train.steps=3": "the grid sets train.steps for each of its points",
    "optimizer.warmup_steps=3": "the grid sets optimizer.warmup_steps for each",
    "train.batch_size=0": "train.batch_size=0: must be at least 1",
    "data.source=/no/such.txt": "no such file or folder",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_common_to_all_points_is_one_line_before_anything_runs(tiny, tmp_path, capsys, argument):
    path = write_grid(
        tmp_path, "isoflop([1e9], [{'model.embed': 16}, {'model.embed': 32}]), rules=(warmup_fraction(0.1),)"
    )
    assert launch(f"experiment={path}", f"run_dir={tmp_path / 'run'}", argument) == 2
    out = capsys.readouterr()
    assert MISTAKES[argument] in out.err
    assert out.err.count("\n") == 1
    assert not (tmp_path / "run" / "points").exists()


def test_dry_run_says_what_each_point_is_and_takes_and_writes_nothing(tiny, tmp_path, capsys):
    path = write_grid(tmp_path, "isoflop([1e9, 2e9], [{'model.embed': 16}, {'model.embed': 32}])")
    arguments = (
        f"experiment={path}",
        f"run_dir={tmp_path / 'run'}",
        "--dry-run",
        "grid.hardware=h100",
        "grid.devices=8",
        "grid.mfu=0.5",
    )
    assert launch(*arguments) == 0
    out = capsys.readouterr().out
    for word in ("4 points", "C2G-N13.4k", "8 x NVIDIA H100", "assumed MFU of 50%", "6nd_with_head"):
        assert word in out, word
    assert not (tmp_path / "run").exists()
    assert launch(*arguments, "grid.points=1") == 0
    assert "1 points" in capsys.readouterr().out
    assert launch(f"experiment={tiny}", "--dry-run") == 2
    assert "--dry-run: is for grids" in capsys.readouterr().err


def test_show_prints_the_base_and_the_points(tiny, tmp_path, capsys):
    path = write_grid(tmp_path, "over('train.seed', [3, 4])")
    assert launch(f"experiment={path}", "--show", "model.layers=7") == 0
    out = capsys.readouterr().out
    assert "layers: 7" in out
    assert "# 1 seed4: train.seed=4" in out
