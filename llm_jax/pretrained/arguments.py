"""The keys of every command that opens a model: layout=NAME mesh.AXIS=N dtype=NAME step=N adapter=FOLDER"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_jax.core.arguments import argument
from llm_jax.core.errors import require


def preset_names() -> tuple[str, ...]:
    """The names of the layouts that `layout=` takes."""
    from llm_jax.layout.presets import PRESETS  # imports JAX, which is set up first

    return tuple(PRESETS)


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """The placement, dtype and checkpoint of the model that a command opens; by default it is on
    one device.
    """

    layout: str = argument("", shown="NAME", choices=preset_names)
    """The layout that places the model on the devices (docs/layouts.md); on one device, if not given."""
    mesh: dict[str, int] = argument({}, entry="AXIS", least=-1)
    """The size of one of the layout's mesh axes; -1: all devices that the others leave."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """The dtype of weights and computation; if not given, as the model was trained, but float32 where a CPU
    would have to emulate bfloat16."""
    step: int | None = argument(None, least=0)
    """The checkpoint of this step; the newest, if not given."""
    adapter: Path | None = argument(None, shown="PEFT_FOLDER")
    """An adapter that the PEFT library (or this program) saved: the model is used with it."""
    decode: Literal["merged", "apart"] = argument("merged", name="adapter.decode")
    """Whether an adapter, a run's too, is merged into the model's weights, or stays beside them: then what a
    small dtype or few bits of the base round away is kept, and each product takes longer."""

    def check(self) -> None:
        """Raises UserError for mesh sizes without a layout."""
        for axis, size in self.mesh.items():
            require(bool(self.layout), f"mesh.{axis}", size, "given together with a layout; add layout=NAME")

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `open_model` that these keys stand for."""
        from llm_jax.layout.presets import preset  # imports JAX, which is set up first

        return {
            "layout": preset(self.layout) if self.layout else None,
            "mesh": self.mesh,
            "dtype": self.dtype,
            "step": self.step,
            "adapter": self.adapter,
            "apart": self.decode == "apart",
        }
