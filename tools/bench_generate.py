"""Measures tokens/s of decoding, beside the bound set by memory bandwidth: every step reads all weights and
the cache once.

    python tools/bench_generate.py              # 1.3 M, 110 M and 350 M parameters; 1 and 8 prompts at once
    python tools/bench_generate.py models=110m slots=1 rounds=20 devices=2

The bound is bandwidth / (bytes of weights and cache that a step reads). Bandwidth is measured in the same
process, by all cores reading (and copying) more than any cache holds; the faster one counts. A round is some
decode steps between two measurements of bandwidth; the figures are medians over rounds, so that other load on
the machine affects both. devices=N: N simulated devices, with layout=tensor.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

SETTINGS = {"models": "quickstart,110m,350m", "slots": "1,8", "rounds": "9", "devices": "1", "steps": "30"}
BYTES = 1 << 30
"""Size of the array that the measurement of bandwidth reads."""


def main() -> int:
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    settings = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if unknown := set(settings) - set(SETTINGS):
        print(f"error: {', '.join(unknown)}: one of {', '.join(SETTINGS)}", file=sys.stderr)
        return 2
    settings = {**SETTINGS, **settings}
    devices = int(settings["devices"])
    if devices > 1:
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        )
    bandwidth = Bandwidth()
    print(
        f"{'model':>12} {'slots':>5} {'tokens/s':>9} {'bound':>9} {'part':>5} {'GB/s':>6} {'of':>6}   "
        f"(medians of {settings['rounds']} rounds)"
    )
    for model in settings["models"].split(","):
        for slots in map(int, settings["slots"].split(",")):
            measure(model, slots, devices, int(settings["rounds"]), int(settings["steps"]), bandwidth)
    return 0


class Bandwidth:
    """Memory bandwidth in bytes/s, all cores together."""

    def __init__(self) -> None:
        cores = len(os.sched_getaffinity(0))
        self.pool = ThreadPoolExecutor(cores)
        self.parts = np.array_split(np.ones(BYTES // 4, np.float32), cores)
        self.copies = [np.ones(len(part) // 2, np.float32) for part in self.parts]

    def __call__(self) -> float:
        begun = time.perf_counter()
        list(self.pool.map(np.sum, self.parts))
        read = time.perf_counter()
        list(self.pool.map(lambda part, copy: np.copyto(copy, part[: len(copy)]), self.parts, self.copies))
        copied = time.perf_counter()
        return max(BYTES / (read - begun), BYTES / (copied - read))


def measure(model: str, slots: int, devices: int, rounds: int, steps: int, bandwidth: Bandwidth) -> None:
    """Measures one model with one number of slots, and prints a line of the table."""
    import jax

    from llm_jax.experiment import Experiment
    from llm_jax.generate.engine import Engine
    from llm_jax.generate.request import Request
    from llm_jax.layout.layout import MeshPlacement
    from llm_jax.layout.mesh import make_mesh
    from llm_jax.layout.presets import preset
    from llm_jax.model.config import ModelConfig
    from llm_jax.train.state import TrainModel

    shapes = {
        "quickstart": ModelConfig(layers=4, embed=128, heads=8, mlp=352, vocab=4096),
        "110m": ModelConfig(layers=12, embed=768, heads=12, mlp=2048, vocab=32768),
        "350m": ModelConfig(layers=24, embed=1024, heads=16, mlp=2816, vocab=32768),
    }
    config = shapes[model].resolved()
    layout = preset("tensor" if devices > 1 else "single")
    experiment = Experiment(model=config, layout=layout)
    program = TrainModel(config, experiment.optimizer, MeshPlacement(layout, make_mesh(layout, {})))
    random = np.random.default_rng(0)
    parameters = jax.tree.map(
        lambda w: random.standard_normal(w.shape, np.float32) * np.float32(0.02), program.abstract
    )
    parameters = jax.device_put(parameters, program.shardings("stored"))
    engine = Engine(program, parameters, Ids(config.vocab or 0), model, slots=slots, max_tokens=256)
    read = sum(w.nbytes for w in jax.tree.leaves(engine.weights)) + sum(
        c.nbytes for c in jax.tree.leaves(engine.state.caches)
    )
    speeds, bands, parts = [], [], []
    requests = [Request(ids=(1, 2, 3, 4 + i), max_tokens=250, seed=i) for i in range(slots)]
    for request in requests:
        engine.submit(request)
    for _ in range(130 + slots):  # into the last bucket, where all of the cache is read
        engine.step()
    for _ in range(rounds):
        if engine.max_tokens - len(next(iter(engine.results.values())).tokens) < steps + 10:
            engine.results.clear()
            for slot in range(slots):
                if active := engine.slots[slot]:
                    engine.cancel(active.id)
            for request in requests:
                engine.submit(request)
            for _ in range(130 + slots):
                engine.step()
        before = bandwidth()
        begun = time.perf_counter()
        for _ in range(steps):
            engine.step()
        seconds = (time.perf_counter() - begun) / steps
        bands.append(max(before, bandwidth()))
        speeds.append(slots / seconds)
        parts.append(read / seconds / bands[-1])
    speed, band, part = (statistics.median(x) for x in (speeds, bands, parts))
    print(
        f"{model:>12} {slots:>5} {speed:>9.1f} {slots * band / read:>9.1f} {part:>5.0%} "
        f"{speed / slots * read / 1e9:>6.1f} {band / 1e9:>6.1f}",
        flush=True,
    )


class Ids:
    """A tokenizer without text and without EOS: no text ends early."""

    bos_id = 1
    eos_ids: tuple[int, ...] = ()

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError("prompts are ids")

    encode_with_control = encode
    control_tokens: Mapping[str, int] = {}

    def decode(self, ids: object) -> str:
        return ""


if __name__ == "__main__":
    sys.exit(main())
