"""The file of samples: whole batches, whatever kills the writer; and every score a function of samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llm_jax.core.errors import UserError
from llm_jax.evaluate.samples import append_samples, read_samples
from llm_jax.evaluate.task_scores import estimate, normalized, right_by, score_samples
from llm_jax.evaluate.task_table import group_lines


def test_batches_are_read_back_in_order(tmp_path: Path):
    path = tmp_path / "a.samples.jsonl.zst"
    assert read_samples(path) == []
    append_samples(path, [{"id": "ü"}, {"id": "b\u2028"}])
    append_samples(path, [{"id": "c"}])
    assert [sample["id"] for sample in read_samples(path)] == ["ü", "b\u2028", "c"]


def test_a_batch_that_a_kill_left_unfinished_is_cut_off(tmp_path: Path):
    path = tmp_path / "a.samples.jsonl.zst"
    append_samples(path, [{"id": str(i)} for i in range(50)])
    whole = path.read_bytes()
    append_samples(path, [{"id": "x" * 100}])
    both = path.read_bytes()
    tails = [both[:end] for end in range(len(whole) + 1, len(both))]
    for content in (*tails, whole + bytes(4096), whole + b"\xff" * 9):  # a crash of the machine leaves such
        path.write_bytes(content)
        lines: list[str] = []
        assert len(read_samples(path, lines.append)) == 50, len(content)
        assert path.read_bytes() == whole
        assert "are cut off; 50 samples stay" in lines[0]
    assert len(read_samples(path, pytest.fail)) == 50
    append_samples(path, [{"id": "last"}])
    assert read_samples(path)[-1] == {"id": "last"}


def test_another_file_is_one_line(tmp_path: Path):
    (tmp_path / "a").write_text("no samples")
    with pytest.raises(UserError, match="is no file of samples"):
        read_samples(tmp_path / "a")


def choice(logprob: float, text: str, **more: Any) -> dict[str, Any]:
    return {
        "logprob": logprob, "tokens": 2, "characters": len(text), "bytes": len(text.encode()), "greedy": False, **more,
    }  # fmt: skip


def sample(number: int, gold: int, *choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": str(number), "gold": gold, "choices": choices, "truncated": False, "merged": False, **more}


def test_normalizations():
    one = choice(-6.0, "äö", unconditional=-4.0)
    assert [normalized(one, by) for by in ("raw", "per_token", "per_character", "per_byte", "pmi")] == [
        -6.0, -3.0, -3.0, -1.5, -2.0,
    ]  # fmt: skip


def test_choices_that_tie_share_the_answer():
    assert right_by(sample(0, 1, choice(-1, "a"), choice(-1, "b")), "raw") == 0.5
    assert right_by(sample(0, 1, choice(-1, "a"), choice(-2, "b")), "raw") == 0
    assert right_by(sample(0, 0, choice(-1, "a"), choice(-2, "b")), "raw") == 1


def test_a_model_to_which_all_is_equal_scores_what_a_guess_does():
    samples = [sample(i, i % 4, *(choice(0.0, "ab") for _ in range(4))) for i in range(100)]
    assert estimate(samples, "choice", "raw").value == 0.25


def test_bits_per_byte_are_a_ratio_of_sums():
    samples = [sample(0, 0, choice(-8 * math.log(2), "ab")), sample(1, 0, choice(-2 * math.log(2), "abcdef"))]
    found = score_samples(samples, "gold", "bits_per_byte", ())
    assert found["value"] == pytest.approx(10 / 8)
    assert found["gold_bits_per_byte"] == found["value"]


def test_every_normalization_and_group_is_in_a_result():
    samples = [
        sample(
            i,
            0,
            choice(-3, "long answer", unconditional=-1),
            choice(-2, "b", unconditional=-9),
            group="ab"[i % 2],
        )
        for i in range(10)
    ]
    found = score_samples(
        samples, "choice", "per_character", ("raw", "per_token", "per_character", "per_byte")
    )
    values = {name: metric["value"] for name, metric in found["metrics"].items()}
    bits = values.pop("bits_per_byte")
    assert values == {"per_character": 1, "raw": 0, "per_token": 0, "per_byte": 1, "pmi": 0}
    assert bits == pytest.approx(3 / 11 / math.log(2))
    assert {name: part["n"] for name, part in found["groups"].items()} == {"a": 5, "b": 5}
    assert (found["n"], found["value"]) == (10, 1)


def test_items_of_a_source_are_a_cluster():
    alone = [sample(i, 0, choice(-1, "a"), choice(-2 + 2 * (i // 5 % 2), "b")) for i in range(40)]
    together = [{**one, "source": str(i // 5)} for i, one in enumerate(alone)]
    narrow, wide = (estimate(samples, "choice", "raw") for samples in (alone, together))
    assert narrow.value == wide.value == 0.5
    assert (narrow.clusters, wide.clusters) == (40, 8)
    assert wide.stderr > 1.5 * narrow.stderr


def test_pass_at_k_is_without_bias():
    samples = [sample(0, 0, choice(-1, "a"), passed=3, samples=10, right=0.3)]
    found = score_samples(samples, "code", "pass@1", ())
    assert found["value"] == pytest.approx(0.3)
    assert found["metrics"]["pass@5"]["value"] == pytest.approx(0.9167, abs=1e-4)


def test_a_group_is_the_mean_above_chance():
    results = [
        {"task": name, "kind": "choice", "value": value, "stderr": 0.03, "ci95": [value - 0.06, value + 0.06], "n": 200, "clusters": 200, "chance": chance}
        for name, value, chance in (("a", 0.25, 0.25), ("b", 0.75, 0.5), ("c", 0.9, 0.5))
    ]  # fmt: skip
    (line,) = group_lines(results, {"core": ["a", "b"], "one": ["c"]})
    assert line.startswith("core        25.0% above chance (")
    assert line.endswith("the mean of 2 tasks")
