"""The command as a user runs it: one self-contained page, figures and JSON beside it, and one line for every
mistake."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest

from llm_jax.core.arguments import read_command
from llm_jax.inspect import analysis, write
from llm_jax.inspect.__main__ import main
from llm_jax.inspect.arguments import InspectArguments
from llm_jax.inspect.page import title_of
from llm_jax.pretrained.model import open_model
from tests.huggingface.expected import FIXTURES
from tests.inspect.conftest import logits_of
from tests.tiny_run import launch, write_experiment

TEXT = "the model reads\ta row of tokens and counts 42 naïve 日本 ends."


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    run = folder / "run"
    assert (
        launch(
            f"experiment={write_experiment(folder)}",
            f"run_dir={run}",
            "checkpoint.keep=4",
            "checkpoint.keep_best=false",
        )
        == 0
    )
    return run


@pytest.fixture(scope="module")
def folder(run) -> Path:
    out = run.parent / "page"
    arguments = [
        f"text={TEXT}",
        "word=model",
        "contexts=the model reads|of a model and",
        f"tokenizers={run}",
        f"diff={run}@4",
        f"out={out}",
    ]
    assert main([str(run), *arguments]) == 0
    return out


@pytest.fixture
def without_figures(monkeypatch):
    """For tests that don't need figures, which take most of the time."""
    monkeypatch.setattr(write, "draw", lambda found, folder: {})


def read(folder: Path) -> tuple[str, dict]:
    page = (folder / "inspect.html").read_text()
    return page, json.loads((folder / "inspect.json").read_text(), parse_constant=lambda name: 1 / 0)


def test_the_page_needs_nothing_from_outside_and_its_links_have_targets(folder):
    page, _ = read(folder)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert not re.search(r"@import|url\(|https?://", re.sub(r"data:[\w/+;,=]+", "", page))
    ids = set(re.findall(r'id="([\w-]+)"', page))
    assert {link for link in re.findall(r'href="#([\w-]+)"', page) if not link.startswith("head-")} <= ids
    pictures = re.findall(r"figures/(\w+)\.png", page)
    assert sorted(f"{name}.png" for name in pictures) == sorted(
        path.name for path in (folder / "figures").iterdir()
    )
    assert set(pictures) == {
        "loss",
        "attention",
        "heads",
        "lens",
        "word_cosine",
        "word_path",
        "tokenizers",
        "weight_difference",
        "divergence",
    }
    assert page.count("<img ") == page.count('alt="')


def test_the_numbers_are_those_of_the_models_forward_pass(run, folder):
    _, found = read(folder)
    opened = open_model(run)
    ids = [opened.tokenizer.bos_id, *opened.tokenizer.encode(TEXT)]
    assert [t["id"] for t in found["tokens"]] == ids
    assert bytes.fromhex("".join(t["bytes"] for t in found["tokens"])).decode() == TEXT
    logits = logits_of(opened, np.array([ids]))[0].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -log_p[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose([t["loss"] for t in found["tokens"][1:]], losses, atol=1e-4)
    assert found["loss"]["bits_per_byte"] == pytest.approx(
        losses.sum() / np.log(2) / len(TEXT.encode()), rel=1e-4
    )
    assert found["predictions"][3]["top"][0][0] == int(logits[3].argmax())
    assert "next" not in found["predictions"][-1]
    lens = found["logit_lens"]
    assert [row["layer"] for row in lens] == [-1, 0, 1]
    assert lens[-1]["top_id"] == logits.argmax(-1).tolist()  # after the last layer it is the prediction


def test_the_maps_on_the_page_unpack_to_rows_that_sum_to_one(folder):
    page, found = read(folder)
    data = json.loads(re.search(r'id="attention-data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["maps"] == found["attention"]["maps"]
    T, heads = data["length"], data["heads"]
    assert len(found["tokens"]) == T
    for packed in data["maps"]:
        flat = np.frombuffer(base64.b64decode(packed), np.uint8).reshape(heads, T * (T + 1) // 2)
        rows = np.zeros((heads, T, T))
        rows[:, *np.tril_indices(T)] = flat / 255
        np.testing.assert_allclose(rows.sum(-1), 1, atol=0.5 / 255 * T)


def test_two_checkpoints_differ_and_a_checkpoint_does_not_differ_from_itself(
    run, folder, tmp_path, without_figures
):
    _, found = read(folder)
    assert max(found["comparison"]["kl"]) > 0
    assert all(w["relative"] > 0 for w in found["comparison"]["weights"] if w["kind"] == "attention.query")
    assert main([str(run), "text=a b", f"diff={run}", "step=6", f"out={tmp_path}"]) == 0
    page, found = read(tmp_path)
    assert found["comparison"]["top_1_changes_at"] == []
    assert not any(found["comparison"]["kl"])
    assert {(w["relative"], round(w["cosine"], 5)) for w in found["comparison"]["weights"]} <= {
        (0.0, 1.0),
        (0.0, 0.0),
    }
    assert "Nowhere." in page


def test_a_word_begins_as_the_same_vector(folder):
    _, found = read(folder)
    word = found["word"]
    assert word["same_tokens"]
    assert word["cosine"][0] == pytest.approx(1, abs=1e-6)
    assert word["cosine"][-1] < 1
    assert np.shape(word["path"]) == (2, 3, 2)


def test_an_example_word_is_followed_by_default(run, tmp_path, without_figures):
    assert main([str(run), "text=a b", f"out={tmp_path}"]) == 0
    page, found = read(tmp_path)
    assert found["word"]["word"] == "bank"
    assert found["word"]["same_tokens"]
    assert "an example: <code>word=</code>" in page


def test_what_a_page_leaves_out_is_noted(run, tmp_path, monkeypatch, capsys, without_figures):
    monkeypatch.setattr(analysis, "MAX_MAP_BYTES", 400)
    monkeypatch.setattr(analysis, "MAX_LENS_CELLS", 30)
    assert main([str(run), f"text={TEXT * 3}", "tokens=20", "layers=1", f"out={tmp_path}"]) == 0
    page, found = read(tmp_path)
    assert "Shown are the first 20 of the text's" in page
    assert "Maps are of the first 14 of the 20 tokens" in page
    assert "Maps are of layers 1 only (layers=)." in page
    assert "Shown are the first 10 of the 20 positions" in page
    assert "20 tokens of" in capsys.readouterr().out
    assert len(found["predictions"]) == 20
    assert np.shape(found["head_scores"]["entropy"]) == (2, 4)


def test_a_loaded_model_without_a_tokenizer_is_shown_by_ids_with_its_experts(tmp_path, without_figures):
    assert main([str(FIXTURES / "deepseek_v3"), "ids=5,17,33,8,5,17", f"out={tmp_path}"]) == 0
    page, found = read(tmp_path)
    assert page.count("came without its tokenizer") == 2  # in the tokens' section and in the word's
    assert [t["label"] for t in found["tokens"]] == ["#5", "#17", "#33", "#8", "#5", "#17"]
    assert [e["layer"] for e in found["experts"]] == [1, 2]
    assert "Experts: where tokens are routed" in page
    assert found["tokenizers"] == {}


def test_text_for_a_model_without_a_tokenizer_is_one_line(tmp_path, capsys):
    assert main([str(FIXTURES / "deepseek_v3"), "text=a", f"out={tmp_path}"]) == 2
    assert "has no tokenizer; give ids=1,2,3" in capsys.readouterr().err


def test_a_text_that_could_be_html_stays_text(run, tmp_path, without_figures):
    assert main([str(run), "text=</script><b>&", f"out={tmp_path}"]) == 0
    page, _ = read(tmp_path)
    assert page.count("</script>") == 2
    assert "<b>&" not in page


MISTAKES = {
    "text=a shots=2": "shots=: has an effect only with sample=TASK#ITEM. Add that, or leave this out",
    "txt=a": "there is no key 'txt'; did you mean 'text'?",
    "text=": "text=: must be some text",
    "file=none.txt": "file=none.txt: no such file",
    "": "text=TEXT is missing",
    "text=a file=b": "text= and file= are given. Give one of them",
    "text=a layers=2": "layers=2: there is no layer 2; the model has 2, from 0 on",
    "text=a layers=x": "layers=x: must be whole numbers with commas between them, at least 0",
    "text=a tokens=1": "tokens=1: must be a whole number, at least 2",
    "text=a tokens=5000": "tokens=5000: must be a whole number, at least 2 and at most 1024",
    "text=a word=b": "word=b: needs contexts= too",
    "text=a word=b contexts=b": "contexts=b: must be two texts with a | between them",
    "text=a word=bank contexts=bank|river": "word=bank: is no word of the context 'river'",
    f"text=a word=1 contexts=1|{'1' * 1100}": "tokens, more than the 1,024 that a page holds",
    "text=a diff=nowhere": "diff=nowhere: no such folder",
    "text=a diff=": "diff=: must be some text",
    "text=a step=5": "step=5",
    "text=a tokenizers=nowhere": "tokenizers=nowhere: no such file",
    "text=a dtype=int8": "dtype=int8",
    "text=a layout=fsdb": "layout=fsdb",
    "ids=1,9999": "ids=9999: must be below model.vocab=320",
    "ids=1": "ids=1: is 1 token; at least 2 are needed",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(run, tmp_path, capsys, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    assert main([str(run), "out=page", *line.split()]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert MISTAKES[line] in stderr
    assert not (tmp_path / "page").exists()


def test_a_page_goes_to_its_run_and_never_into_a_model_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, folder in (
        ([str(run)], run / "inspect"),
        ([str(FIXTURES / "deepseek_v3")], Path("inspect/deepseek_v3")),
        ([str(FIXTURES / "deepseek_v3"), "out=here"], Path("here")),
    ):
        command = read_command([*words, "text=a"], InspectArguments)
        assert command is not None
        assert command.page_folder() == folder


def test_only_figures_of_an_earlier_page_are_removed(run, tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("mine.png", "divergence.png"):
        (tmp_path / "figures" / name).write_bytes(b"")
    assert main([str(run), "text=a b", f"out={tmp_path}"]) == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{n}.png"
        for n in ("mine", "loss", "attention", "heads", "lens", "word_cosine", "word_path", "tokenizers")
    }


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("runs/quickstart/default", "quickstart"),
        ("/home/me/runs/a/b/", "b"),
        ("../x/a", "x/a"),
        ("/runs/default", "default"),
        (".", Path.cwd().name),
    ],
)
def test_a_page_has_a_title_whatever_the_folder_is_called(path, title):
    assert title_of(path) == title


def test_a_text_that_is_too_long_is_refused_not_cut(run, capsys, tmp_path):
    (tmp_path / "long.txt").write_text(TEXT * 60)
    assert main([str(run), f"file={tmp_path / 'long.txt'}"]) == 2
    stderr = capsys.readouterr().err
    assert re.search(
        r"is \d,\d{3} tokens, more than the 1,024 that a page holds; tokens=1024 takes the first ones", stderr
    )


def test_no_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none"), "text=a"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["text=a"]) == 2
    assert "RUN_OR_FOLDER is missing" in capsys.readouterr().err
