"""From the corpus to the devices: batches are made and moved ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from llm_jax.data import batch_sha
from llm_jax.layout.layout import MeshPlacement
from llm_jax.objective.protocol import ArraySpec, Examples, HostBatch, Objective
from llm_jax.train.config import TrainConfig
from llm_jax.train.state import TrainState


class DeviceBatch(NamedTuple):
    """A batch on the devices."""

    arrays: dict[str, jax.Array]
    """Each [A, B / A, ...]: microbatches first."""
    shas: tuple[str | None, ...]
    """The sha256 of each run's whole batch; None where it isn't wanted or another process has it."""


class BatchSource(Protocol):
    """Where the loop gets its batches: the one of a step may depend on the state, so step `s` is a function
    of (data, seed, s, weights at s).
    """

    def next(self, step: int, state: TrainState) -> DeviceBatch:
        """The batch of `step` (from 0), for the state that this step updates.

        Steps are asked for in order, but for roll-backs.
        """

    def close(self) -> None:
        """Ends threads and releases what it holds."""


class Loader:
    """Batches that are a pure function of the step.

    It ignores the state, so a thread makes the next ones in the meantime.
    """

    def __init__(
        self,
        examples: Examples,
        objective: Objective,
        place: MeshPlacement,
        train: TrainConfig,
        batch_of: Callable[[int], int] = lambda step: step,
        ahead: int = 2,
    ):
        """batch_of: which batch a step has (a roll-back skips some). ahead: how many are made before they are
        needed.
        """
        self.examples, self.specs, self.place, self.batch_of = examples, objective.arrays(), place, batch_of
        self.train, self.ahead = train, ahead
        self.sha = train.batch_sha and jax.process_index() == 0
        self.thread = ThreadPoolExecutor(1, "loader")
        self.upcoming: dict[int, Future[DeviceBatch]] = {}
        """Batches that are being made, by their number."""

    def next(self, step: int, state: TrainState | None = None) -> DeviceBatch:
        """The batch of `step`; those of the next steps are begun."""
        numbers = [self.batch_of(s) for s in range(step, min(step + self.ahead, self.train.steps))]
        self.upcoming = {
            number: self.upcoming.get(number) or self.thread.submit(self.make, number) for number in numbers
        }
        return self.upcoming.pop(numbers[0]).result()

    def make(self, number: int) -> DeviceBatch:
        """Batch `number`: this process reads the rows of its own devices (and all of them where it makes the
        sha).
        """
        A, b = self.train.microbatches, self.train.batch_size // self.train.microbatches
        if self.sha or jax.process_count() == 1:
            whole = checked(self.examples.batch(number), self.specs)
            sha = batch_sha(whole) if self.sha else None
            rows = {name: value.reshape(A, b, *value.shape[1:]) for name, value in whole.items()}
            first = 0
        else:
            sha = None
            own = self.place.sharding((None, "batch"), "compute").addressable_devices_indices_map((A, b))
            mine = [index[1].indices(b) for index in own.values() if index]
            first, stop = min(start for start, _, _ in mine), max(stop for _, stop, _ in mine)
            parts = [
                checked(self.examples.batch(number, range(a * b + first, a * b + stop)), self.specs)
                for a in range(A)
            ]
            rows = {name: np.stack([part[name] for part in parts]) for name in parts[0]}

        def on_devices(name: str, values: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[1].indices(b)
                return values[:, start - first : stop - first][:, :, *index[2:]]

            shape = (A, b, *values.shape[2:])
            return jax.make_array_from_callback(
                shape, self.place.sharding((None, *names(self.specs[name])), "compute"), part
            )

        return DeviceBatch({name: on_devices(name, values) for name, values in rows.items()}, (sha,))

    def close(self) -> None:
        """Ends the thread."""
        self.thread.shutdown(cancel_futures=True)


def names(spec: ArraySpec) -> tuple[str | None, ...]:
    """The names of an array's dims, None for those that are only a size."""
    return tuple(dim if isinstance(dim, str) else None for dim in spec.dims)


def sizes(spec: ArraySpec, batch: int, length: int) -> tuple[int, ...]:
    """The shape of an array with so many rows of so many tokens."""
    known = {"batch": batch, "sequence": length}
    return tuple(known[dim] if isinstance(dim, str) else dim for dim in spec.dims)


def checked(batch: HostBatch, specs: Mapping[str, ArraySpec]) -> HostBatch:
    """The arrays of a host batch that an objective wants, in its order and dtypes.

    Raises KeyError for one that is missing.
    """
    if missing := [name for name in specs if name not in batch]:
        raise KeyError(
            f"the objective wants arrays {', '.join(missing)}, and its examples have {', '.join(batch)}"
        )
    return {name: np.asarray(batch[name], spec.dtype) for name, spec in specs.items()}


def on_devices(batch: HostBatch, objective: Objective, place: MeshPlacement) -> dict[str, jax.Array]:
    """A whole host batch (the same on every process) on the devices, each array [B, ...]."""
    specs = objective.arrays()
    return {
        name: jax.make_array_from_callback(
            value.shape, place.sharding(names(specs[name]), "compute"), value.__getitem__
        )
        for name, value in checked(batch, specs).items()
    }
