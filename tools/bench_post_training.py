"""Measures post-training beside TRL and PEFT, in turn: SFT, LoRA, DPO, and memory at a large vocabulary.

  python tools/bench_post_training.py reference=/path/to/python     a Python with trl, peft and torch (extra `reference`)
  rounds=N     rounds of each side (default 5)
  steps=N      steps of a round (default 2)
  parts=a,b    of sft, lora, dpo, memory (default: all)
  json=PATH    also writes the figures there

All sides train the same Llama, from the same weights, on the same ids, in float32 on two threads, AdamW at a constant rate.
Each is a process of its own that waits while another computes, round by round (A B A B ...), so that whatever else the machine
does hits both. Medians of rounds; the first step, with its compilation, is apart.

- sft: 2,000 conversations of mixed length (median 120 tokens, longest 512), half of each trained. llm_jax packs whole ones, which
  don't see each other; TRL pads (packing without leaks needs FlashAttention). Trained tokens/s.
- lora: the same with rank 8 on all linear maps, beside full training, of a wider model: what LoRA saves are products with
  weights, and attention costs the same.
- dpo: 120 pairs, reference log-probabilities computed before. Pairs/s.
- memory: peak memory of some steps of SFT at a vocabulary of 150,000, with at most as many positions a step for TRL.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.core.errors import EXIT_USER_ERROR, UserError

STARTED = time.perf_counter()
LENGTH, RANK = 512, 8
SHAPE = {"layers": 6, "embed": 384, "heads": 6, "mlp": 1024, "vocab": 8192}
WIDE = {"layers": 3, "embed": 768, "heads": 12, "mlp": 2048, "vocab": 8192}
LARGE = {"layers": 2, "embed": 128, "heads": 4, "mlp": 352, "vocab": 150_000}
ROWS = {"sft": 5, "lora": 5, "dpo": 5}
"""Rows of LENGTH of a step of llm_jax."""
TRL_BATCH = {"sft": 16, "lora": 16, "dpo": 8}
"""Conversations, or pairs, of a step of TRL: about as many tokens."""
PARTS: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "sft": (("sft",), SHAPE),
    "lora": (("sft", "lora"), WIDE),
    "dpo": (("dpo",), SHAPE),
    "memory": (("sft",), LARGE),
}
"""Part → the kinds of training that are measured, and the shape of the model."""
Figures = dict[str, dict[str, Any]]


def main() -> int:
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    if arguments[:1] == ["--ours"]:
        train(arguments[1], Path(arguments[2]))
        return 0
    try:
        values = dict(argument.partition("=")[::2] for argument in arguments)
        if unknown := set(values) - {"reference", "rounds", "steps", "parts", "json"}:
            raise UserError(f"{min(unknown)}=: there is no such key; --help lists them")
        reference = values.get("reference", "")
        if not Path(reference).is_file():
            raise UserError(f"reference={reference}: is no file. Give a Python that has trl and peft")
        parts = values.get("parts", ",".join(PARTS)).split(",")
        if unknown := set(parts) - set(PARTS):
            raise UserError(f"parts={min(unknown)}: there is no such part; there are {', '.join(PARTS)}")
        found = {}
        for part in parts:
            found[part] = measure(part, reference, int(values.get("rounds", 5)), int(values.get("steps", 2)))
            report({part: found[part]})
            if "json" in values:
                Path(values["json"]).write_text(json.dumps(found, indent=2) + "\n")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def measure(part: str, reference: str, rounds: int, steps: int) -> Figures:
    """The figures of each side of one part."""
    kinds, shape = PARTS[part]
    rounds = 1 if part == "memory" else rounds
    with tempfile.TemporaryDirectory(prefix="bench_post_training.") as name:
        folder = Path(name)
        write_data(folder, part, shape, steps)
        subprocess.run([reference, trl_script(), "model", name], check=True, stderr=subprocess.DEVNULL)
        ours = [sys.executable, "-m", "tools.bench_post_training", "--ours"]
        sides = {}
        for kind in kinds:
            sides[f"{kind} llm_jax"] = Side([*ours, kind, name], folder)
            sides[f"{kind} TRL"] = Side([reference, trl_script(), kind, name], folder)
        try:
            for side in sides.values():  # one after the other: the first step is timed too
                side.start()
            for _ in range(rounds):
                for side in sides.values():
                    side.round()
            return {name: side.figures() for name, side in sides.items()}
        finally:
            for side in sides.values():
                side.stop()


def trl_script() -> str:
    """The file that runs TRL."""
    return str(Path(__file__).with_name("bench_trl.py"))


def write_data(folder: Path, part: str, shape: dict[str, int], steps: int) -> None:
    """settings.json, and data.npz with the ids: prompts, and how they end."""
    llama = {
        "vocab_size": shape["vocab"], "hidden_size": shape["embed"], "intermediate_size": shape["mlp"],
        "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"], "num_key_value_heads": shape["heads"],
        "tie_word_embeddings": True, "max_position_embeddings": LENGTH, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    settings = {
        "llama": llama,
        "length": LENGTH,
        "rank": RANK,
        "steps": steps,
        "trl_batch": ROWS if part == "memory" else TRL_BATCH,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    rng = np.random.default_rng(0)
    longest = LENGTH // 2 if part == "dpo" else LENGTH
    count = 240 if part == "dpo" else 2000  # TRL computes the reference's log-probabilities of all
    lengths = np.clip(np.exp(rng.normal(np.log(120), 0.8, count)).astype(int), 16, longest)
    prompts = lengths // 2
    texts = [rng.integers(2, shape["vocab"], n).astype(np.int32) for n in lengths]
    if part == "dpo":  # both answers of a pair follow one prompt
        for chosen, rejected in zip(range(0, count, 2), range(1, count, 2), strict=True):
            prompts[rejected] = prompts[chosen] = min(prompts[chosen], prompts[rejected])
            texts[rejected][: prompts[chosen]] = texts[chosen][: prompts[chosen]]
    np.savez(folder / "data.npz", tokens=np.concatenate(texts), ends=np.cumsum(lengths), prompts=prompts)


class Side:
    """A process that trains when it is told to."""

    def __init__(self, command: list[str], folder: Path):
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2")
        self.command, self.environment = (
            command,
            os.environ | threads | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        )
        self.log = (folder / f"{len(list(folder.iterdir()))}.log").open("w")
        self.process: subprocess.Popen[str] | None = None
        self.first: dict[str, float] = {}
        self.rounds: list[dict[str, float]] = []

    def start(self) -> None:
        """Starts it, and waits for its first step."""
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        self.first = self.answer()

    def round(self) -> None:
        """Some steps, while every other side waits."""
        assert self.process
        assert self.process.stdin
        print("go", file=self.process.stdin, flush=True)
        self.rounds.append(self.answer())

    def answer(self) -> dict[str, float]:
        """Its next line. Raises UserError, with the end of its log, where it failed."""
        assert self.process
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.log.flush()
            tail = Path(self.log.name).read_text().splitlines()[-3:]
            raise UserError(f"{' '.join(self.command)}: failed ({' | '.join(tail)})")
        return json.loads(line)

    def stop(self) -> None:
        """Ends it."""
        if self.process:
            self.process.kill()
            self.process.communicate()
        self.log.close()

    def figures(self) -> dict[str, Any]:
        """Units a second: the median of the rounds, and their range; the same by CPU time, two cores busy; the
        first step, and the peak of memory.
        """
        speeds = [one["units"] / one["seconds"] for one in self.rounds]
        return {
            "speed": statistics.median(speeds),
            "speed_by_cpu": statistics.median(2 * one["units"] / one["cpu"] for one in self.rounds),
 "range": [min(speeds), max(speeds)],
            "first_step_seconds": self.first["seconds"], "peak_bytes": max(one["peak"] for one in self.rounds),
            "rounds": self.rounds,
        }  # fmt: skip


def report(found: dict[str, Figures]) -> None:
    """Prints the figures of some parts, and the ratios."""
    print(f"{'':22}{'a second (median, range)':>32}{'by CPU time':>13}{'first step':>12}{'peak':>12}")
    for part, sides in found.items():
        for name, figures in sides.items():
            low, high = figures["range"]
            speed = f"{figures['speed']:,.1f} ({low:,.1f} to {high:,.1f})"
            rest = f"{figures['speed_by_cpu']:>13,.1f}{figures['first_step_seconds']:>10.1f} s"
            print(f"{part + ': ' + name:22}{speed:>32}{rest}{figures['peak_bytes'] / 2**20:>8,.0f} MiB")
    for name, pair in comparisons(found).items():
        values = "peak_bytes" if name.startswith("memory") else "speed speed_by_cpu"
        ratios = [pair[0][value] / pair[1][value] for value in values.split()]
        print(f"{name:34}{ratios[0]:6.2f}" + (f"   by CPU time {ratios[1]:6.2f}" if len(ratios) > 1 else ""))
    sys.stdout.flush()


def comparisons(found: dict[str, Figures]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The figures that are compared: the first divided by the second."""
    pairs = {}
    for part, sides in found.items():
        for kind in dict.fromkeys(name.split()[0] for name in sides):
            pairs[f"{part}: {kind}, llm_jax / TRL"] = sides[f"{kind} llm_jax"], sides[f"{kind} TRL"]
        if part == "lora":
            for side in ("llm_jax", "TRL"):
                pairs[f"lora: lora / full, {side}"] = sides[f"lora {side}"], sides[f"sft {side}"]
    return pairs


# --- llm_jax's side ---


def train(kind: str, folder: Path) -> None:
    """Trains as `Side` wants it: figures after the first step, then after `steps` for each line that is read."""
    import resource

    settings = json.loads((folder / "settings.json").read_text())
    experiment = experiment_of(kind, folder)
    run = prepared(experiment, rows_of(kind, folder, experiment))
    begun, cpu, first = STARTED, 0.0, 0
    while True:
        units = 0.0
        last = first + (settings["steps"] if first else 1)
        for number in range(first, last):
            units += run(number)
        first = last
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        spent = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu}
        print(json.dumps({**spent, "units": units, "peak": peak}), flush=True)
        if not sys.stdin.readline().strip():
            return
        begun, cpu = time.perf_counter(), time.process_time()


def experiment_of(kind: str, folder: Path) -> Any:
    """SFT, with an adapter for lora, or DPO, of the model in the folder."""
    import dataclasses

    from llm_jax.experiment import Experiment, resolved
    from llm_jax.layout.presets import preset
    from llm_jax.model.adapters import AdapterConfig
    from llm_jax.objective.dpo import DPO
    from llm_jax.objective.sft import SFT
    from llm_jax.pretrained.source import open_source
    from llm_jax.train.config import TrainConfig
    from llm_jax.train.optimizer import OptimizerConfig

    model = open_source(folder / "model").experiment.model
    model = dataclasses.replace(
        model, parameter_dtype="float32", compute_dtype="float32", attention="blocked", scan_layers=False
    )
    return resolved(
        Experiment(
            model=model,
            layout=preset("single"),
            objective=DPO() if kind == "dpo" else SFT(),
            optimizer=OptimizerConfig(
                name="adamw", learning_rate=1e-4, schedule="constant", weight_decay=0.0, warmup_steps=0
            ),
            train=TrainConfig(
                start_from=str(folder / "model"), steps=10_000, batch_size=ROWS[kind], sequence_length=LENGTH
            ),
            adapter=AdapterConfig(rank=RANK if kind == "lora" else 0),
        )
    )


def rows_of(kind: str, folder: Path, experiment: Any) -> Any:
    """The endless rows of whole conversations, or pairs."""
    from llm_jax.data.answer_rows import PairRows
    from llm_jax.data.whole_rows import WholeRows

    with np.load(folder / "data.npz") as file:
        tokens, ends, prompts = file["tokens"], file["ends"], file["prompts"]
    starts = np.append(0, ends[:-1])
    weights = np.ones(len(tokens), np.uint8)
    for start, prompt in zip(starts, prompts, strict=True):
        weights[start : start + prompt] = 0
    rows = (PairRows if kind == "dpo" else WholeRows)(
        tokens, starts, ends - starts, length=LENGTH, seed=0, weights=weights
    )
    if kind == "dpo":  # the reference's log-probabilities, as `run.precomputed` attaches them
        rows.numbers["reference_logp"] = np.full(len(tokens), -np.log(experiment.model.vocab), np.float32)
    return rows


def prepared(experiment: Any, rows: Any) -> Any:
    """The function that does step `number`, and returns its units: trained tokens, or pairs."""
    import jax

    from llm_jax.layout.layout import MeshPlacement
    from llm_jax.layout.mesh import make_mesh
    from llm_jax.run.frozen import read_frozen
    from llm_jax.run.initial_weights import initial_state
    from llm_jax.train.compile import jit_step
    from llm_jax.train.loader import on_devices
    from llm_jax.train.state import TrainModel

    e, quiet = experiment, lambda line: None
    place = MeshPlacement(e.layout, make_mesh(e.layout, e.mesh))
    model = TrainModel(e.model, e.optimizer, place, 0.0, e.train.trainable, e.adapter)
    state = initial_state(e, model, quiet)
    frozen = read_frozen(e, model, {}, quiet)
    step = jit_step(model, e.objective, e.optimizer, e.train.steps)

    def run(number: int) -> float:
        nonlocal state
        first = number * e.train.batch_size
        made = [rows[i] for i in range(first, first + e.train.batch_size)]
        batch = on_devices(
            {name: np.stack([row[name] for row in made]) for name in made[0]}, e.objective, place
        )
        with jax.set_mesh(place.mesh):
            state, metrics = step(state, {name: value[None] for name, value in batch.items()}, frozen)
        return float(metrics["loss_weight"])

    return run


if __name__ == "__main__":
    sys.exit(main())
