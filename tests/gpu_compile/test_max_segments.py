"""`model.max_segments` is counted if it is null, refused if it is too small, and may change on resume."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment, to_yaml
from llm_jax.layout.layout import MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig
from llm_jax.run.prepare import with_max_segments
from llm_jax.run.run_folder import check_same_run, write_config
from llm_jax.train.config import RollbackConfig, TrainConfig

NEEDED = 7


def room(
    max_segments: int | None, attention: str = "cudnn", layout: str = "fsdp_tensor", spike: float = 0.0
) -> tuple[int | None, dict]:
    """The resolved value for 16 rows in 2 microbatches on 4 x 2 devices, and what the corpus was asked."""
    asked: dict = {}

    def max_documents_per_row(**arguments: int) -> int:
        asked.update(arguments)
        return NEEDED

    experiment = Experiment(
        model=ModelConfig(attention=attention, max_segments=max_segments),  # type: ignore[arg-type]
        train=TrainConfig(
            steps=30,
            batch_size=16,
            microbatches=2,
            rollback=RollbackConfig(spike=spike, before=2, after=1, most=5),
        ),
    )
    place = MeshPlacement(preset(layout), make_mesh(preset(layout), {}))
    found = with_max_segments(experiment, SimpleNamespace(max_documents_per_row=max_documents_per_row), place)  # type: ignore[arg-type]
    return found.model.max_segments, asked


def test_room_is_counted_for_the_rows_that_one_device_has():
    assert room(None) == (NEEDED, {"steps": 30, "group": 2, "held_out_group": 4})
    assert room(None, layout="tensor") == (NEEDED, {"steps": 30, "group": 8, "held_out_group": 16})


def test_room_is_counted_for_the_rows_that_come_in_place_of_skipped_ones():
    assert room(None, spike=1.5) == (NEEDED, {"steps": 50, "group": 2, "held_out_group": 4})


def test_room_that_is_given_and_enough_is_kept():
    assert room(NEEDED)[0] == NEEDED
    assert room(20)[0] == 20


def test_too_little_room_is_refused_with_the_number_that_is_needed():
    with pytest.raises(UserError, match=r"model\.max_segments=6: .* use model\.max_segments=7, or null"):
        room(6)


def test_other_kernels_need_none_and_nothing_is_counted():
    assert room(None, attention="xla") == (None, {})


def test_another_room_is_no_other_run(tmp_path):
    one, two = (Experiment(model=dataclasses.replace(ModelConfig(), max_segments=n)) for n in (None, 5))
    write_config(tmp_path, to_yaml(one))
    assert check_same_run(tmp_path, to_yaml(two)) == ["model.max_segments: unset → 5"]
