"""Measures the host memory that loading a model takes beyond the model.

  python tools/huggingface_memory.py gigabytes=3                                 on one device
  python tools/huggingface_memory.py gigabytes=3 devices=4 layout=fsdp_tensor    on simulated devices in host memory

It writes a random Llama of about that size in bfloat16, in files of 1 GB, loads it in a new process, and
prints the peak of that process's memory (VmHWM) minus its memory before and minus the weights. The promise:
no more than the largest tensor and 1 GiB. With save=true the process also writes the run folder, as
`python -m llm_jax.pretrained.load` does.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GIB = 1 << 30
MEASURE = """
import json, sys, time
from pathlib import Path

def status(key):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024

import jax
from llm_jax.pretrained import load
from llm_jax.huggingface.transfer import flat_paths
from llm_jax.layout.presets import preset
from llm_jax.pretrained.model import open_model

folder, layout, save = sys.argv[1:]
jax.block_until_ready(jax.numpy.zeros(8))
before, started = status("VmRSS"), time.monotonic()
loaded = open_model(folder, layout=preset(layout), to_convert=True)
weights = sum(shard.data.nbytes for a in flat_paths(loaded.parameters).values() for shard in a.addressable_shards)
made = {"before": before, "weights": weights, "peak": status("VmHWM"), "seconds": time.monotonic() - started}
if save == "true":
    load.write_run(loaded, Path(folder).parent / "run")
    made["peak_saved"] = status("VmHWM")
print(json.dumps(made))
"""


def write_random(folder: Path, total: int, vocab: int = 64000) -> int:
    """Writes a folder with a random Llama of about `total` bytes; returns the bytes of its largest tensor."""
    import numpy as np

    from llm_jax.huggingface import safetensors
    from llm_jax.huggingface.family import load_family
    from llm_jax.huggingface.tensor_map import build_tensor_map
    from llm_jax.huggingface.transfer import shapes_of
    from llm_jax.layout.layout import MeshPlacement
    from llm_jax.layout.mesh import make_mesh
    from llm_jax.layout.presets import preset
    from llm_jax.model.config import ModelConfig
    from llm_jax.train.optimizer import OptimizerConfig
    from llm_jax.train.state import TrainModel

    embed = min(2048, max(64, 2 ** round(math.log2((total / 2000) ** 0.5))))
    vocab = min(vocab, max(128, total // (embed * 16)))
    mlp = 4 * embed
    layers = max(1, round((total / 2 - 2 * vocab * embed) / (embed * embed * 2.5 + 3 * embed * mlp)))
    model = ModelConfig(
        layers=layers, embed=embed, heads=16, kv_heads=4, mlp=mlp, vocab=vocab, tied_embeddings=False
    ).resolved()
    family, single = load_family("llama", "llama"), preset("single")
    program = TrainModel(model, OptimizerConfig(), MeshPlacement(single, make_mesh(single, {})))
    tensor_map = build_tensor_map(family.entries(model, {}), model, shapes_of(program))
    planned = [
        safetensors.PlannedTensor(name, "bfloat16", slices[0].pattern.tensor_shape)
        for name, slices in tensor_map.tensors.items()
    ]
    files = safetensors.shards(planned, 1_000_000_000)
    rng = np.random.default_rng(0)
    noise = (
        (rng.standard_normal(1 << 20, np.float32) * 0.02).astype(safetensors.FLOATS["BF16"]).view(np.uint8)
    )
    folder.mkdir(parents=True)
    for name, tensors in zip(safetensors.shard_names(len(files)), files, strict=True):
        with (folder / name).open("wb") as file:
            safetensors.write_header(file, tensors)
            for tensor in tensors:
                for first in range(0, tensor.nbytes, len(noise)):
                    noise[: min(len(noise), tensor.nbytes - first)].tofile(file)
    if len(files) > 1:
        safetensors.write_index(folder, files, safetensors.shard_names(len(files)))
    (folder / "config.json").write_text(json.dumps({**family.write_config(model), "torch_dtype": "bfloat16"}))
    return max(tensor.nbytes for tensor in planned)


def measure(folder: Path, layout: str = "single", devices: int = 1, save: bool = False) -> dict[str, float]:
    """Memory of a new process that loads the folder, in bytes: before, weights, peak (and peak_saved); and
    its seconds.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", MEASURE, str(folder), layout, str(save).lower()]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str]) -> int:
    """Measures and prints; removes the model that it wrote."""
    settings = dict(argument.split("=", 1) for argument in arguments)
    save = settings.get("save") == "true"
    work = Path(tempfile.mkdtemp(dir=settings.get("dir")))
    try:
        largest = write_random(work / "model", int(float(settings.get("gigabytes", 3)) * 1e9))
        started = time.monotonic()
        found = measure(
            work / "model", settings.get("layout", "single"), int(settings.get("devices", 1)), save
        )
        print(
            f"weights {found['weights'] / GIB:.2f} GiB, largest tensor {largest / GIB:.2f} GiB, loaded in "
            f"{found['seconds']:.0f} s"
        )
        for name in ("peak", "peak_saved") if save else ("peak",):
            beyond = found[name] - found["before"] - found["weights"]
            print(
                f"{name} beyond the weights: {beyond / GIB:.2f} GiB (promised: below "
                f"{largest / GIB + 1:.2f} GiB)"
            )
        print(f"{time.monotonic() - started:.0f} s in all")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
