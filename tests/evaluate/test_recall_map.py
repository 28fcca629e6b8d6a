"""The map of recall over distance."""

from __future__ import annotations

import json

from llm_jax.evaluate.recall_map import main
from llm_jax.evaluate.suites.recall import RecallCell


def test_scores_are_drawn_by_distance_and_length(tmp_path, capsys):
    scores = tmp_path / "scores.json"
    groups = {
        RecallCell(distance, length).name: {"value": value, "ci95": [value - 0.1, value], "n": 50}
        for (distance, length), value in {(0, 1): 1.0, (128, 1): 0.75, (0, 4): 0.5}.items()
    }
    scores.write_text(
        json.dumps({"results": [{"task": "copying", "groups": groups}, {"task": "arc_easy", "groups": {}}]})
    )
    assert main([str(scores), f"out={tmp_path / 'map.png'}"]) == 0
    assert capsys.readouterr().out.splitlines()[1:4] == [
        "             0     128",
        "     1    100%     75%",
        "     4     50%       -",
    ]
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_without_a_map_is_one_line(tmp_path, capsys):
    scores = tmp_path / "scores.json"
    for content, problem in (
        ("", "no such file"),
        ('{"results": []}', "has no scores of copying"),
        ('{"results": [{}, 3]}', "its results are no list"),
    ):
        if content:
            scores.write_text(content)
        assert main([str(scores), f"out={tmp_path / 'map.png'}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"SCORES.json={scores}: {problem}" in line
