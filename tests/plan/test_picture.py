"""The picture of a layout: each part is drawn with the devices that hold it."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from llm_jax.plan import picture
from llm_jax.plan.__main__ import main
from llm_jax.plan.plan import plan_program, with_assumptions
from llm_jax.run.initial_weights import experiment_from_pairs


@pytest.fixture
def drawn(small):
    """A function: the arrays that are drawn for a layout on 8 devices, by title."""

    def rows(*pairs: tuple[str, str]) -> dict[str, picture.PlacedArray]:
        experiment, _ = with_assumptions(experiment_from_pairs([("experiment", str(small)), *pairs]), "cpu")
        program = plan_program(experiment, jax.devices()[:8])
        return {
            a.title: a
            for row in [*picture.activations(experiment, program.place), *picture.weights(program)]
            for a in row
        }

    return rows


def test_parts_are_where_a_real_array_has_them(drawn):
    for array in drawn(("layout", "fsdp_tensor"), ("mesh.tensor", "4")).values():
        local = array.sharding.shard_shape(array.shape)
        numbered = np.zeros(array.shape, np.int32)
        for part in array.parts():
            numbered[tuple(slice(n * size, (n + 1) * size) for n, size in zip(part, local, strict=True))] = (
                hash(part) % 2**31
            )
        for shard in jax.device_put(numbered, array.sharding).addressable_shards:
            (held,) = [part for part, devices in array.parts().items() if shard.device.id in devices]
            assert np.all(np.asarray(shard.data) == hash(held) % 2**31)


def test_a_caption_names_what_is_split(drawn):
    arrays = drawn()  # fsdp: weights are whole only while they are multiplied
    assert arrays["gate, up: while multiplied"].parts() == {(0, 0, 0): list(range(8))}
    assert [devices for _, devices in sorted(arrays["gate, up: at rest"].parts().items())] == [
        [i] for i in range(8)
    ]
    assert arrays["residual stream"].caption() == "batch 16/8 x sequence 64 x embed 64"


def test_colours_distinguish_copies_from_parts():
    assert len(set(picture.part_colour(list(range(8)), 8))) == 1  # grey: held by all
    assert len({picture.part_colour([i], 8) for i in range(8)}) == 8
    saturation = [
        max(c) - min(c)
        for c in (
            picture.part_colour([3], 8),
            picture.part_colour([3, 4], 8),
            picture.part_colour([3, 4, 5, 6], 8),
        )
    ]
    assert saturation == sorted(saturation, reverse=True)


def test_a_picture_needs_no_hardware_and_no_compiler(small, tmp_path, capsys):
    path = tmp_path / "layout.png"
    assert main([f"experiment={small}", "devices=8", "layout=fsdp_tensor", f"picture={path}"]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert str(path) in capsys.readouterr().out


def test_a_picture_of_an_unknown_kind_is_refused(small, tmp_path, capsys):
    assert main([f"experiment={small}", "devices=8", f"picture={tmp_path / 'layout.jpeg2'}"]) == 2
    assert "a file that ends in .png or .pdf or .svg" in capsys.readouterr().err
