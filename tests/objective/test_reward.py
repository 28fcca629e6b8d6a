"""Reward models: their loss against TRL's, a run as a user starts it, and the scores of a file."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.files import read_json_lines
from llm_jax.evaluate.__main__ import main as evaluate
from llm_jax.generate.__main__ import main as generate
from llm_jax.huggingface.family import family_names, inexpressible, load_family
from llm_jax.huggingface.safetensors import read_folder
from llm_jax.model.config import ModelConfig
from llm_jax.objective.reward import reward_loss
from llm_jax.pretrained.save import main as save
from llm_jax.pretrained.save import reward_padding
from tests.data.test_chat import folder, tokenizer  # noqa: F401  (fixtures)
from tests.objective.test_distill import LAYOUTS
from tests.tiny_run import launch, write_experiment

CASES = json.loads((Path(__file__).parent / "reward_cases.json").read_text())  # tools/make_reward_fixtures.py
WORDS = ("red", "blue", "green", "house", "river", "cloud", "stone", "light")


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_trls(case):
    margin = jnp.asarray(case["margin"] or 0.0)
    mean = lambda c, r: jnp.mean(reward_loss(c, r, margin, case["centring"]))  # noqa: E731
    rewards = jnp.asarray(case["chosen"]), jnp.asarray(case["rejected"])
    loss, gradients = jax.value_and_grad(mean, argnums=(0, 1))(*rewards)
    assert float(loss) == pytest.approx(case["loss"], rel=1e-6)
    np.testing.assert_allclose(np.concatenate(gradients), case["gradient"], rtol=1e-5, atol=1e-7)


def answer(i: int, good: bool) -> str:
    words = [WORDS[(i * 7 + j * 3) % 8] for j in range(2 + i % 4)]
    return " ".join([*words[:-1], "yes" if good else "no"])


@pytest.fixture(scope="module")
def base(folder, tmp_path_factory) -> Path:  # noqa: F811
    """A run of one step with the tokenizer of a chat model, and pairs of answers: the better one ends in "yes"."""
    path = tmp_path_factory.mktemp("base")
    start = [f"experiment={write_experiment(path)}", f"tokenizer.file={folder}", "train.steps=1"]
    assert launch(*start, f"run_dir={path / 'run'}") == 0
    pairs = [
        {"prompt": f"say {i}", "chosen": answer(i, True), "rejected": answer(i, False)} for i in range(160)
    ]
    (path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def train(base: Path, run_dir: Path, *arguments: str, code: int = 0) -> list[dict]:
    """Trains in a folder; its metrics."""
    words = [
        f"from={base / 'run'}", f"data.source={base / 'pairs.jsonl'}", "data.held_out_fraction=0.2",
        "train.batch_size=8", "train.sequence_length=128", "optimizer.learning_rate=1e-2", "evaluate.every=50",
        "checkpoint.every=50", "objective.centring=0.01", f"run_dir={run_dir}",
    ]  # fmt: skip
    assert launch("experiment=reward", *words, *arguments) == code
    return read_json_lines(run_dir / "metrics.jsonl") if code == 0 else []


@pytest.fixture(scope="module")
def model(base) -> Path:
    """A run that has learned to rank."""
    train(base, base / "reward", "layout=single", "train.steps=40")
    return base / "reward"


def values(metrics: list[dict], name: str) -> np.ndarray:
    return np.array([line[name] for line in metrics if name in line])


def rewards_of(capsys, *words) -> list[list[float]]:
    """What the command prints of each record."""
    capsys.readouterr()
    assert evaluate([*map(str, words)]) == 0
    return [[float(value) for value in line.split()] for line in capsys.readouterr().out.splitlines()]


def test_a_reward_model_learns_to_rank(base, model, tmp_path):
    one = read_json_lines(model / "metrics.jsonl")
    assert values(one, "train_loss")[0] == pytest.approx(np.log(2), abs=1e-6)  # the head starts at 0
    assert (values(one, "accuracy")[0], values(one, "ties")[0]) == (0, 1)
    assert values(one, "train_loss")[-1] < 0.1
    assert values(one, "eval_accuracy")[-1] >= 0.9
    assert values(one, "eval_pairs")[-1] > 20
    agree(base, tmp_path, "fsdp_tensor", ("mesh.data=4", "mesh.tensor=2"), 2)


def agree(base, run_dir, layout, mesh, microbatches):
    """The losses and gradients of a layout are those of one device."""
    many = train(base, run_dir / "many", f"layout={layout}", *mesh, f"train.microbatches={microbatches}",
                 "train.steps=3")  # fmt: skip
    one = train(base, run_dir / "one", "layout=single", "train.steps=3")
    for name in ("train_loss", "chosen_reward", "gradient_norm", "eval_loss"):
        np.testing.assert_allclose(values(many, name), values(one, name), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "mesh", "microbatches"), LAYOUTS)
def test_every_layout_takes_the_steps_of_one_device(base, tmp_path, layout, mesh, microbatches):
    agree(base, tmp_path, layout, mesh, microbatches)


def test_a_file_is_scored_as_in_training(base, model, tmp_path, capsys):
    records = [
        {"prompt": "say 7", "chosen": answer(7, True), "rejected": answer(7, False)},
        {
            "messages": [
                {"role": "user", "content": "say 7"},
                {"role": "assistant", "content": answer(7, True)},
            ]
        },
        {"prompt": "say 7", "completion": answer(7, False)},
        {"text": "a text " * 40},
    ]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (chosen, rejected), (same,), (other_one,), (text,) = rewards_of(
        capsys, model, f"rewards={tmp_path / 'some.jsonl'}"
    )
    assert chosen > rejected + 1
    assert same == pytest.approx(chosen, abs=2e-4)
    assert other_one == pytest.approx(rejected, abs=2e-4)
    assert np.isfinite(text)
    scored = tmp_path / "scored.jsonl"
    assert evaluate([str(model), f"rewards={tmp_path / 'some.jsonl'}", f"out={scored}", "layout=fsdp_tensor",
                     "mesh.data=4", "mesh.tensor=2"]) == 0  # fmt: skip
    assert "accuracy    100.0% of 1 pairs" in capsys.readouterr().out
    written = read_json_lines(scored)
    assert written[0]["prompt"] == "say 7"
    assert written[0]["chosen_reward"] == pytest.approx(chosen, abs=2e-4)
    assert written[3]["reward"] == pytest.approx(text, abs=2e-4)

    capsys.readouterr()  # a reward model is no language model
    assert generate([str(model), "prompt=a"]) == 2
    assert evaluate([str(model), "data.source=stdlib"]) == 2
    assert evaluate([str(base / "run"), f"rewards={scored}"]) == 2
    assert (
        launch("experiment=sft", f"from={model}", f"data.source={scored}", f"run_dir={tmp_path / 'x'}") == 2
    )
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith(f"error: {model}: is a reward model, which scores texts and writes none.")
    assert errors[1] == errors[0]
    assert "is a language model, without a head for rewards. Use a run of experiment=reward" in errors[2]
    assert "model.outputs=reward: objective.name=sft needs model.outputs=logits" in errors[3]
    assert len(errors) == 4


def test_its_held_out_pairs_are_ranked_again(model, capsys):
    assert evaluate([str(model), f"out={model / 'scores.json'}"]) == 0
    assert re.search(r"scores +loss \S+, accuracy \S+% of \d+ pairs, difference", capsys.readouterr().out)
    found, last = (
        json.loads((model / "scores.json").read_text()),
        read_json_lines(model / "metrics.jsonl")[-1],
    )
    for name in ("eval_loss", "eval_accuracy", "eval_reward_difference", "eval_pairs"):
        assert found[name] == pytest.approx(last[name], rel=1e-5), name


def test_it_leaves_as_a_classifier_with_one_label_and_comes_back(model, base, tmp_path, capsys):
    """That transformers computes the same rewards: tests/huggingface/test_trained_here.py."""
    source = tmp_path / "some.jsonl"
    source.write_text(
        json.dumps({"prompt": "say 7", "chosen": answer(7, True), "rejected": answer(7, False)}) + "\n"
    )
    assert save([str(model), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "LlamaForSequenceClassification" in printed
    tree = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (tree["architectures"], tree["id2label"]) == (["LlamaForSequenceClassification"], {"0": "LABEL_0"})
    tensors = read_folder(tmp_path / "out")
    assert tensors["score.weight"].shape == (1, tree["hidden_size"])
    assert "lm_head.weight" not in tensors
    there = rewards_of(capsys, tmp_path / "out", f"rewards={source}")
    np.testing.assert_allclose(there, rewards_of(capsys, model, f"rewards={source}"), rtol=1e-6)
    assert save([str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    capsys.readouterr()
    pads_with_end = SimpleNamespace(tokenizer_if_any=SimpleNamespace(pad_id=2, eos_ids=(2,)))
    assert reward_padding(pads_with_end, print) == {"pad_token_id": None}
    assert "pad_token_id=null: the tokenizer pads with a token that ends texts" in capsys.readouterr().out
    (tmp_path / "out" / "config.json").write_text(json.dumps({**tree, "id2label": {"0": "a", "1": "b"}}))
    assert evaluate([str(tmp_path / "out"), f"rewards={source}"]) == 2
    assert "tells 2 labels apart; of such models only reward models are read" in capsys.readouterr().err


def test_a_family_without_a_class_for_it_is_refused():
    config = ModelConfig(layers=1, embed=16, heads=2, mlp=32, vocab=40, outputs="reward").resolved()
    assert inexpressible(dataclasses.replace(load_family("llama", ""), classifier=""), config) == [
        "model.outputs=reward"
    ]
    assert all(
        load_family(name, "").classifier.endswith("ForSequenceClassification") for name in family_names()
    )


def test_a_margin_and_the_place_of_the_last_token_reach_the_loss():
    """By the segment table: the end of an answer, whatever its token is, and padding never."""
    from llm_jax.data.answer_rows import PairRows
    from llm_jax.objective.reward import Reward, pair_rewards

    lengths_N = np.array([3, 5, 4, 2])
    tokens = np.zeros(14, np.int64)  # every token is the same one, and that of padding
    rows = PairRows(tokens, np.cumsum(lengths_N) - lengths_N, lengths_N, length=64, seed=None,
                    values_N=np.array([0.5, 0.5, 2.0, 2.0], np.float32))  # fmt: skip
    batch = {name: jnp.asarray(value)[None] for name, value in rows.row(0).items()}
    assert set(Reward().arrays()) <= set(batch)

    class Positions:
        """A model whose reward is the position in the row."""

        config = place = None

        def reward(self, x_BTD):
            return jnp.arange(64.0)[None]

    import llm_jax.objective.reward as module
    from llm_jax.objective.logprobs import Hidden

    found = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "restore", lambda x, place: x)
        found = pair_rewards(Positions(), Hidden(jnp.zeros((1, 64, 1)), None), batch)
    np.testing.assert_array_equal(found.chosen, [[2, 11]])
    np.testing.assert_array_equal(found.rejected, [[7, 13]])
    np.testing.assert_array_equal(found.margin, [[0.5, 2]])
    np.testing.assert_array_equal(found.there, [[1, 1]])


def test_the_head_is_trained_beside_an_adapter():
    from llm_jax.layout.layout import MeshPlacement
    from llm_jax.layout.mesh import make_mesh
    from llm_jax.layout.presets import preset
    from llm_jax.model.accounting import parameter_count
    from llm_jax.model.adapters import AdapterConfig
    from llm_jax.train.optimizer import OptimizerConfig
    from llm_jax.train.state import TrainModel

    config = ModelConfig(layers=1, embed=16, heads=2, mlp=32, vocab=40, outputs="reward").resolved()
    place = MeshPlacement(preset("single"), make_mesh(preset("single"), {}))
    model = TrainModel(config, OptimizerConfig(), place, adapter=AdapterConfig(rank=2))
    assert "head" in model.trained
    assert "embedding" not in model.trained
    assert model.plain.parameter_count() == parameter_count(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; must have an object a line"),
        ('{"text": 1}\n', "line 1: has the keys text; must have"),
        ('{"prompt": "a"}\n', "line 1: has no answer to score"),
        ("[1]\n", "line 1 is no object"),
    ],
)
def test_a_file_that_cant_be_scored_is_one_line(model, tmp_path, capsys, content, message):
    (tmp_path / "wrong.jsonl").write_text(content)
    capsys.readouterr()
    assert evaluate([str(model), f"rewards={tmp_path / 'wrong.jsonl'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
