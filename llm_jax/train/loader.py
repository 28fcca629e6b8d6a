"""From the corpus to the devices: batches are made and moved ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from llm_jax.data import Corpus, batch_sha
from llm_jax.layout.layout import MeshPlacement


class Fed(NamedTuple):
    """A batch on the devices."""

    arrays: dict[str, jax.Array]
    """Each [A, B / A, T]: microbatches first."""
    shas: tuple[str | None, ...]
    """The sha256 of each run's whole batch; None where it isn't asked for or another process has it."""


class Feed:
    """The batches from one step on. That of step s is a pure function of s; a thread makes the next ones meanwhile."""

    def __init__(
        self,
        corpus: Corpus,
        place: MeshPlacement,
        *,
        batch_size: int,
        microbatches: int,
        sha: bool,
        batch_of: Callable[[int], int] = lambda step: step,
        ahead: int = 2,
    ):
        """batch_of: which of the corpus's batches a step has. ahead: so many are made before they are asked for."""
        self.corpus, self.place, self.batch_of = corpus, place, batch_of
        self.batch_size, self.microbatches = batch_size, microbatches
        self.sha = sha and jax.process_index() == 0
        self.ahead = ahead
        self.thread = ThreadPoolExecutor(1, "feed")

    def batches(self, first: int, last: int) -> Iterator[Fed]:
        """The batches of steps first .. last - 1."""
        waiting: list[Future[Fed]] = []
        upcoming = iter(range(first, last))
        while True:
            for step in upcoming:
                waiting.append(self.thread.submit(self.make, self.batch_of(step)))
                if len(waiting) >= self.ahead:
                    break
            if not waiting:
                return
            yield waiting.pop(0).result()

    def make(self, number: int) -> Fed:
        """Batch `number`: this process reads the rows of its own devices (and all of them where it makes the sha)."""
        A, b = self.microbatches, self.batch_size // self.microbatches
        sharding = self.place_sharding()
        shape = (A, b, self.corpus.sequence_length)
        if self.sha or jax.process_count() == 1:
            whole = self.corpus.batch(number)
            sha = batch_sha(whole) if self.sha else None
            rows = {name: value.reshape(A, b, -1) for name, value in whole.items()}
            first = 0
        else:
            sha = None
            mine = [index[1].indices(b) for index in sharding.addressable_devices_indices_map(shape).values() if index]
            first, stop = min(start for start, _, _ in mine), max(stop for _, stop, _ in mine)
            parts = [self.corpus.batch(number, range(a * b + first, a * b + stop)) for a in range(A)]
            rows = {name: np.stack([part[name] for part in parts]) for name in parts[0]}

        def local(values: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[1].indices(b)
                return values[:, start - first : stop - first, index[2]]

            return jax.make_array_from_callback(shape, sharding, part)

        return Fed({name: local(values) for name, values in rows.items()}, (sha,))

    def place_sharding(self) -> jax.sharding.NamedSharding:
        """Where a batch of microbatches lives."""
        return self.place.sharding((None, "batch", "sequence"), "compute")

    def close(self) -> None:
        """Ends the thread."""
        self.thread.shutdown(cancel_futures=True)


def on_devices(batch: dict[str, np.ndarray], place: MeshPlacement) -> dict[str, jax.Array]:
    """A whole [B, T] batch (the same on every process) on the devices."""
    sharding = place.sharding(("batch", "sequence"), "compute")
    return {name: jax.make_array_from_callback(value.shape, sharding, value.__getitem__) for name, value in batch.items()}
