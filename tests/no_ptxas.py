"""A folder of CUDA tools in which `ptxas` writes no machine code: half the time of compiling for absent GPUs
goes into it.

Nothing here runs or reads that code: tests read a compiled step's HLO, memory and aliasing, all made before
(tests/gpu_compile/test_no_ptxas.py compares them with those that the real `ptxas` leaves).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax._src.lib as jax_lib

SCRIPT = """#!/bin/sh
case " $* " in *" --version "*) exec {real} --version;; esac
while [ $# -gt 0 ]; do
  case $1 in -o | --output-file) out=$2; shift;; -o*) out=${{1#-o}};; --output-file=*) out=${{1#*=}};; esac
  shift
done
echo "no machine code" > "$out"
"""
REAL: str | None = jax_lib.cuda_path
"""The folder that JAX gives to XLA as `xla_gpu_cuda_data_dir`; None where CUDA isn't installed as Python
packages.
"""


def tools_without_ptxas(folder: Path) -> str | None:
    """Makes the folder, with links to all other tools, unless it is there; returns its path for
    `jax._src.lib.cuda_path`.
    """
    if REAL is None or not (Path(REAL) / "bin" / "ptxas").exists():
        return REAL
    script = folder / "bin" / "ptxas"
    text = SCRIPT.format(real=Path(REAL) / "bin" / "ptxas")
    if not script.exists() or script.read_text() != text:
        script.parent.mkdir(parents=True, exist_ok=True)
        for tool in [*Path(REAL).iterdir(), *(Path(REAL) / "bin").iterdir()]:
            link = folder / tool.relative_to(REAL)
            if tool.name not in ("bin", "ptxas") and not link.exists():
                link.unlink(missing_ok=True)  # it may lead to an environment that is gone
                with contextlib.suppress(FileExistsError):  # another worker was first
                    link.symlink_to(tool)
        new = script.with_suffix(f".{os.getpid()}")
        new.write_text(text)
        new.chmod(0o755)
        new.replace(script)
    return str(folder)
