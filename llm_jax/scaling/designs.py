"""Designs of grids (sizes x budgets, horizons, sweeps, ...), and rules that set the rest of a point's
settings.

A size is a dict of overrides of the model, {"model.layers": 4, "model.embed": 128, ...}. Sizes are a list of
them, from small to large, or a function of the base that returns one (`sizes`), since parameter counts depend
on the base's vocabulary, gates and biases. Steps are computed from a design's tokens and the base's batch and
sequence, so they follow a command line that changes these.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from llm_jax.core.errors import UserError, require
from llm_jax.core.format import short
from llm_jax.experiment import Experiment, override, resolved, with_vocabulary
from llm_jax.model import accounting
from llm_jax.model.config import ModelConfig
from llm_jax.model.parametrization import of_width
from llm_jax.scaling.fit.minima import SAME_BUDGET
from llm_jax.scaling.grid import Design, Overrides, Row, Rule, over, product, tokens_per_step

Shape = Callable[[int], Overrides]
Sizes = Sequence[Overrides] | Callable[[Experiment], list[Overrides]]


# ----------------------------------------------------------------------------------------------------
# sizes


def aspect(ratio: float = 32, head_dim: int = 16, layers: int | None = None, mlp: float = 8 / 3) -> Shape:
    """A function from a width, a multiple of `head_dim`, to a size with width / layers of about `ratio`, or
    with `layers` layers.

    Use one depth for small models: the step from one layer to two makes a kink in a curve. mlp: hidden units
    per width, rounded to multiples of 8.
    """

    def shape(embed: int) -> Overrides:
        depth = layers or max(1, round(embed / ratio))
        hidden = max(8, round(embed * mlp / 8) * 8)
        return {
            "model.embed": embed,
            "model.layers": depth,
            "model.heads": embed // head_dim,
            "model.head_dim": head_dim,
            "model.mlp": hidden,
        }

    shape.step = head_dim  # type: ignore[attr-defined]
    return shape


def sizes(
    shape: Shape, parameters: Sequence[float], convention: str = "6nd_with_head"
) -> Callable[[Experiment], list[Overrides]]:
    """A function from the base to the sizes nearest to `parameters`, each once, among those that `shape`
    (`aspect`) makes from widths."""

    check_positive("sizes", parameters)

    def make(base: Experiment) -> list[Overrides]:
        step, width = getattr(shape, "step", 16), 0
        counted: list[tuple[int, Overrides]] = []
        while not counted or counted[-1][0] < max(parameters):
            width += step
            counted.append((accounting.size(model_of_size(base, shape(width)), convention), shape(width)))
        nearest = [min(counted, key=lambda c: abs(math.log(c[0] / n))) for n in parameters]
        return [
            size for i, (_, size) in enumerate(nearest) if size not in [other for _, other in nearest[:i]]
        ]

    return make


def geometric(smallest: float, largest: float, count: int) -> list[float]:
    """`count` numbers at equal ratios from `smallest` to `largest`.

    >>> geometric(1, 100, 3)
    [1.0, 10.0, 100.0]
    """
    return [smallest * (largest / smallest) ** (i / max(1, count - 1)) for i in range(count)]


def chinchilla_sizes(first: int = 0, end: int | None = None) -> list[Overrides]:
    """The sizes of Hoffmann et al. 2022, table A9 (`model/shapes.toml`): the slice first:end of the 50."""
    table = accounting.published_shapes()["chinchilla"]
    names = [f"model.{name}" for name in table["columns"][1:]]
    return [dict(zip(names, shape[1:], strict=True)) for shape in table["shapes"][first:end]]


def resolve_sizes(of: Sizes, base: Experiment) -> list[Overrides]:
    """The sizes for this base as a list, from small to large. Raises UserError where it is empty."""
    made = list(of(base) if callable(of) else of)
    require(bool(made), f"grid {base.name}: sizes", made, "at least one")
    return made


def check_positive(what: str, values: Sequence[float]) -> None:
    """Raises UserError unless there is at least one value and all are finite and above 0."""
    require(
        len(values) > 0 and all(0 < value < math.inf for value in values),
        what,
        list(values),
        "one or more numbers above 0",
    )


def model_of_size(base: Experiment, size: Overrides) -> ModelConfig:
    """The base's model with the overrides of a size, resolved and with vocabulary."""
    if all(key.count(".") == 1 and key.startswith("model.") for key in size):  # fast path: `sizes` tries many
        changed = dataclasses.replace(
            base.model, **{key.removeprefix("model."): value for key, value in size.items()}
        )
        return with_vocabulary(dataclasses.replace(base, model=changed)).model
    return with_vocabulary(resolved(override(base, list(size.items())))).model


# ----------------------------------------------------------------------------------------------------
# designs


def isoflop(
    budgets: Sequence[float],
    of: Sizes,
    *,
    convention: str = "6nd_with_head",
    per_curve: int | None = None,
    tokens_per_parameter: float = 20.0,
    refills: int = 2,
) -> Design:
    """Approach 2 of Hoffmann et al. 2022: several sizes at each budget of FLOPs, each with the tokens that
    the budget pays for.

    per_curve: number of neighbouring sizes at each budget, around the size whose tokens a parameter are
    nearest to `tokens_per_parameter`; None: all sizes. refills: where the lowest loss of a curve is at its
    edge, the next size beyond is added, at most this many times a curve. Raises UserError where whole steps
    miss a budget by more than 25 %.
    """

    check_positive("isoflop: budgets", budgets)
    require(per_curve is None or per_curve >= 1, "isoflop: per_curve", per_curve, "at least 1")

    def design(base: Experiment, table: list[Row]) -> list[Overrides]:
        all_sizes = resolve_sizes(of, base)
        models = [model_of_size(base, size) for size in all_sizes]
        counts = [accounting.size(model, convention) for model in models]
        require(
            counts == sorted(counts),
            f"grid {base.name}: sizes",
            [short(n) for n in counts],
            "in order, from small to large",
        )
        costs = [accounting.cost_per_token(model, base.train.sequence_length, convention) for model in models]
        first_round, later = [], []
        for budget in budgets:

            def point(i: int, budget: float = budget) -> Overrides:
                paid = budget / costs[i] / tokens_per_step(base)
                steps = max(1, round(paid))
                if not paid / SAME_BUDGET <= steps <= paid * SAME_BUDGET:
                    raise UserError(
                        f"grid {base.name}: {short(budget)} FLOPs pay for {paid:.2g} steps of N = "
                        f"{short(counts[i])}, and whole steps miss the "
                        "budget by more than 25 %. Use larger budgets, smaller sizes, or a smaller "
                        "train.batch_size."
                    )
                name = f"C{short(budget)}-N{short(counts[i])}"
                return {
                    **all_sizes[i],
                    "train.steps": steps,
                    "point.name": name,
                    "point.budget": budget,
                    "point.convention": convention,
                }

            ratios = [
                abs(math.log(budget / cost / n / tokens_per_parameter))
                for cost, n in zip(costs, counts, strict=True)
            ]
            low, high = neighbours(ratios.index(min(ratios)), per_curve or len(counts), len(counts))
            first_round += [point(i) for i in range(low, high + 1)]
            losses = losses_at_budget(table, budget, accounting.columns(convention)[0])
            later += [
                point(i)
                for i in refill_sizes(
                    low,
                    high,
                    {i: losses[n] for i, n in enumerate(counts) if n in losses},
                    len(counts),
                    refills,
                )
            ]
        return first_round + later

    return design


def compute_optimal(
    budgets: Sequence[float],
    of: Sizes,
    *,
    convention: str = "6nd_with_head",
    tokens_per_parameter: float = 20.0,
) -> Design:
    """One run for each budget in FLOPs: the size whose tokens a parameter are nearest to
    `tokens_per_parameter`."""
    return isoflop(
        budgets, of, convention=convention, per_curve=1, tokens_per_parameter=tokens_per_parameter, refills=0
    )


def neighbours(centre: int, count: int, among: int) -> tuple[int, int]:
    """The first and last index of `count` neighbours around `centre`, among `among` indices."""
    low = max(0, min(centre - (count - 1) // 2, among - count))
    return low, min(low + count, among) - 1


def losses_at_budget(table: list[Row], budget: float, column: str) -> dict[int, float]:
    """N → loss of the runs with this budget that ended; infinite for those that failed or diverged. column:
    that of N."""
    ended = [
        row
        for row in table
        if row["flops_budget"] == budget and row["status"] != "unfinished" and row[column]
    ]
    return {
        row[column]: row["eval_loss"]
        if row["status"] == "finished" and row["eval_loss"] is not None
        else math.inf
        for row in ended
    }


def refill_sizes(low: int, high: int, losses: dict[int, float], among: int, refills: int) -> list[int]:
    """The indices of sizes to add to a curve over the sizes low .. high, including those added earlier;
    losses: by index, of ended runs.

    A size is added beyond the edge at which the lowest loss is, once all sizes of the curve so far have
    ended.
    """
    added: list[int] = []
    while len(added) < refills and all(i in losses for i in range(low, high + 1)):
        best = min(range(low, high + 1), key=losses.__getitem__)
        if math.isinf(losses[best]):
            break
        if best == low and low > 0:
            low -= 1
            added.append(low)
        elif best == high and high < among - 1:
            high += 1
            added.append(high)
        else:
            break
    return added


def horizons(of: Sizes, tokens: Sequence[float]) -> Design:
    """Approach 1 of Hoffmann et al. 2022: each size on each number of tokens, with a schedule that ends
    there. With schedule=wsd and `Grid.trunks` the runs of a size share the prefix of its longest run."""
    check_positive("horizons: tokens", tokens)
    return lambda base, table: product(
        resolve_sizes(of, base), over("train.steps", [steps_for(base, n) for n in tokens])
    )


def ladder(of: Sizes, tokens_per_parameter: Sequence[float], convention: str = "6nd_with_head") -> Design:
    """Each size with each number of tokens a parameter: about 20 is the optimum of Hoffmann et al., more is
    over-training."""
    check_positive("ladder: tokens_per_parameter", tokens_per_parameter)

    def design(base: Experiment, table: list[Row]) -> list[Overrides]:
        points = []
        for size in resolve_sizes(of, base):
            n = accounting.size(model_of_size(base, size), convention)
            for ratio in tokens_per_parameter:
                points.append(
                    {
                        **size,
                        "train.steps": steps_for(base, ratio * n),
                        "point.name": f"N{short(n)}-{ratio:g}x",
                    }
                )
        return points

    return design


def sweep(
    learning_rates: Sequence[float],
    batch_sizes: Sequence[int] = (),
    tokens: float | None = None,
    of: Sizes = ({},),
) -> Design:
    """Each learning rate with each batch size for each size, all over one number of tokens (None: the
    base's)."""
    check_positive("sweep: batch_sizes", batch_sizes or [1])
    check_positive("sweep: tokens", [1 if tokens is None else tokens])

    def design(base: Experiment, table: list[Row]) -> list[Overrides]:
        total = tokens or base.train.steps * tokens_per_step(base)
        batches = []
        for rows in batch_sizes or (base.train.batch_size,):
            of_rows = dataclasses.replace(base, train=dataclasses.replace(base.train, batch_size=rows))
            batches.append({"train.batch_size": rows, "train.steps": steps_for(of_rows, total)})
        return product(resolve_sizes(of, base), batches, over("optimizer.learning_rate", learning_rates))

    return design


def mup_transfer(
    widths: Sequence[int],
    learning_rates: Sequence[float],
    parametrizations: Sequence[str] = ("standard", "mup"),
) -> Design:
    """The base at each width (`parametrization.of_width`), learning rate and parametrisation: under muP the
    best rate is the same at all widths."""

    def design(base: Experiment, table: list[Row]) -> list[Overrides]:
        model = base.model.resolved()
        shapes = []
        for wide in (of_width(model, width) for width in widths):
            shape = {
                f"model.{key}": getattr(wide, key)
                for key in ("embed", "heads", "kv_heads", "head_dim", "mlp")
            }
            experts = {f"model.moe.{key}": getattr(wide.moe, key) for key in ("mlp", "shared_mlp")}
            shapes.append(shape | (experts if wide.moe.experts else {}))
        return [
            {
                "model.parametrization": name,
                **shape,
                "optimizer.learning_rate": rate,
                "point.name": f"{name}-{shape['model.embed']}-{rate:.3g}",
            }
            for name, shape, rate in itertools.product(parametrizations, shapes, learning_rates)
        ]

    return design


def steps_for(base: Experiment, tokens: float) -> int:
    """The number of steps of the base's batch nearest to `tokens`, at least 1."""
    return max(1, round(tokens / tokens_per_step(base)))


# ----------------------------------------------------------------------------------------------------
# rules


@dataclasses.dataclass(frozen=True)
class PowerRule:
    """The power law at_million * (N / 1e6) ** exponent, with N counted by a convention."""

    at_million: float
    exponent: float
    convention: str = "6nd_with_head"

    def __call__(self, model: ModelConfig) -> float:
        """The value for a resolved model with vocabulary, to three digits."""
        return float(
            f"{self.at_million * (accounting.size(model, self.convention) / 1e6) ** self.exponent:.3g}"
        )


def learning_rate(rule: PowerRule) -> Rule:
    """A rule that sets the learning rate from the size."""
    return lambda experiment: {"optimizer.learning_rate": rule(experiment.model)}


def warmup_tokens(tokens: float) -> Rule:
    """A rule that sets a warm-up over a fixed number of tokens."""
    return lambda experiment: {"optimizer.warmup_steps": math.ceil(tokens / tokens_per_step(experiment))}


def warmup_per_parameter(tokens_per_parameter: float = 1.0, convention: str = "6nd_with_head") -> Rule:
    """A rule that sets a warm-up proportional to N (Porian et al. 2024: as many tokens as parameters); a
    fixed one is too long for small budgets."""

    def rule(experiment: Experiment) -> Overrides:
        tokens = tokens_per_parameter * accounting.size(experiment.model, convention)
        return {"optimizer.warmup_steps": math.ceil(tokens / tokens_per_step(experiment))}

    return rule


def warmup_fraction(fraction: float) -> Rule:
    """A rule that sets a warm-up over a fraction of the steps."""
    return lambda experiment: {"optimizer.warmup_steps": math.ceil(fraction * experiment.train.steps)}


def fit_rule(table: Sequence[dict[str, Any]], convention: str = "6nd_with_head") -> PowerRule:
    """The learning rate as a power of N, from a sweep's runs: a line through the best rate of each size, both
    in logarithms.

    The best rate is where the parabola through the lowest loss and its neighbours has its minimum; runs of
    one rate (seeds) count with their mean. Raises UserError where the lowest loss of a size is at its lowest
    or highest rate (or beside one that diverged), for fewer than two sizes, and for several batch sizes.
    """
    column = accounting.columns(convention)[0]
    if len(batches := {row.get("batch_size") for row in table}) > 1:
        raise UserError(
            f"fit_rule: the table has runs of several batch sizes ({', '.join(map(str, batches))}), each "
            "with its own best rate. Give runs "
            "of one batch size."
        )
    losses: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in table:
        losses[int(row[column])][float(row["learning_rate"])].append(loss_of(row))
    if len(losses) < 2:
        raise UserError(
            f"fit_rule: the table has {len(losses)} size(s), but a rule over N needs at least two. Add "
            "runs of another size."
        )
    best = {
        n: best_rate(n, {rate: sum(of_seeds) / len(of_seeds) for rate, of_seeds in of_size.items()})
        for n, of_size in sorted(losses.items())
    }
    x, y = [math.log(n / 1e6) for n in best], [math.log(rate) for rate in best.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    exponent = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )
    return PowerRule(math.exp(mean_y - exponent * mean_x), exponent, convention)


def loss_of(row: dict[str, Any]) -> float:
    """The held-out loss of a row, nats a token; infinite where the run did not finish."""
    loss = row.get("eval_loss")
    return (
        float(loss)
        if row.get("status", "finished") == "finished" and loss is not None and math.isfinite(loss)
        else math.inf
    )


def best_rate(size: int, curve: dict[float, float]) -> float:
    """The rate at the minimum of a curve {rate: loss} of N = `size`. Raises UserError where the minimum is at
    an edge."""
    rates = sorted(curve)
    at = min(range(len(rates)), key=lambda i: curve[rates[i]])
    around = rates[max(0, at - 1) : at + 2]
    if at in (0, len(rates) - 1) or not all(math.isfinite(curve[rate]) for rate in around):
        raise UserError(
            f"fit_rule: the lowest loss for N = {size:,} is at the edge of its learning rates "
            f"({rates[at]:g}). Sweep further in that direction."
        )
    (x0, x1, x2), (y0, y1, y2) = [math.log(rate) for rate in around], [curve[rate] for rate in around]
    down, up = (x1 - x0) ** 2 * (y1 - y2), (x1 - x2) ** 2 * (y1 - y0)
    below = (x1 - x0) * (y1 - y2) - (x1 - x2) * (y1 - y0)
    return math.exp(x1 - 0.5 * (down - up) / below) if below else rates[at]
