"""pretrained.load and pretrained.save: a folder becomes a run and a run a folder; mistakes are one line."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from llm_jax import pretrained
from llm_jax.core.errors import UserError
from llm_jax.huggingface import transfer
from llm_jax.huggingface.family import family_for
from llm_jax.layout.presets import preset
from llm_jax.model.config import ModelConfig, MoEConfig
from llm_jax.pretrained.load import main as load
from llm_jax.pretrained.model import open_model
from llm_jax.pretrained.save import main as save
from tests.tiny_run import launch, write_experiment

FIXTURES = Path(__file__).parent / "fixtures"


def arrays(folder: Path, **more) -> dict[str, np.ndarray]:
    """The weights of a folder or run, by path."""
    return {
        path: np.asarray(array)
        for path, array in transfer.flat_paths(open_model(folder, to_convert=True, **more).parameters).items()
    }


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[path].dtype == b[path].dtype and a[path].tobytes() == b[path].tobytes() for path in a
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert launch(f"experiment={write_experiment(folder)}", f"run_dir={folder / 'run'}", "train.steps=2") == 0
    return folder / "run"


def test_a_loaded_folder_is_a_run_and_goes_back_as_it_was(tmp_path, capsys):
    source = FIXTURES / "qwen3_moe_step"
    assert load([str(source), f"run_dir={tmp_path / 'run'}"]) == 0
    assert "it came without a tokenizer" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["family"], summary["step"], summary["left_out"]) == ("qwen3_moe", 0, [])
    assert summary["parameters"] == open_model(source).program.parameter_count()
    assert save([str(tmp_path / "run"), str(tmp_path / "back"), "shard_size=4e4"]) == 0
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1
    assert same_bits(arrays(source), arrays(tmp_path / "run"))
    assert same_bits(arrays(source), arrays(tmp_path / "back"))
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back")
    )
    assert after["torch_dtype"] == after["dtype"] == before.get("torch_dtype", before.get("dtype"))
    assert after["eos_token_id"] == before["eos_token_id"]
    assert (tmp_path / "back" / "generation_config.json").read_text() == (
        source / "generation_config.json"
    ).read_text()


def test_a_run_goes_out_from_any_layout_with_its_tokenizer_and_comes_back(run_dir, tmp_path):
    assert (
        save([str(run_dir), str(tmp_path / "out"), "layout=fsdp_tensor", "mesh.data=2", "mesh.tensor=2"]) == 0
    )
    assert load([str(tmp_path / "out"), f"run_dir={tmp_path / 'again'}"]) == 0
    assert same_bits(arrays(run_dir), arrays(tmp_path / "again"))
    one, two = open_model(run_dir), open_model(tmp_path / "again")
    assert one.tokenizer.encode("a text, 12 b") == two.tokenizer.encode("a text, 12 b")
    assert two.tokenizer.vocab_size == one.tokenizer.vocab_size
    tree = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (tree["bos_token_id"], tree["eos_token_id"]) == (one.tokenizer.bos_id, one.tokenizer.eos_id)


def test_max_position_embeddings_is_the_length_that_a_model_was_trained_on(run_dir, tmp_path):
    opened = open_model(run_dir)
    train = dataclasses.replace(opened.experiment.train, sequence_length=5000)
    longer = dataclasses.replace(opened, experiment=dataclasses.replace(opened.experiment, train=train))
    pretrained.save_model(longer, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 5000


def test_saved_in_bfloat16_each_number_is_the_nearest(run_dir, tmp_path):
    assert save([str(run_dir), str(tmp_path / "out"), "dtype=bfloat16"]) == 0
    for path, array in arrays(tmp_path / "out").items():
        np.testing.assert_array_equal(array, np.asarray(jax.numpy.asarray(arrays(run_dir)[path], "bfloat16")))


def test_what_float16_cannot_hold_is_refused(tmp_path):
    opened = open_model(FIXTURES / "olmo2", dtype="float32")
    large = dataclasses.replace(
        opened,
        parameters={**opened.parameters, "embedding": opened.parameters["embedding"].at[0, 0].set(1e6)},
    )
    with pytest.raises(
        UserError, match=r"dtype=float16: model.embed_tokens.weight has numbers that are too large for it"
    ):
        pretrained.save_model(large, tmp_path / "out", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_however_small_the_chunks_what_is_written_is_the_same(tmp_path, monkeypatch):
    opened = open_model(FIXTURES / "gpt2", layout=preset("fsdp_tensor"), mesh={"data": 2, "tensor": 2})
    pretrained.save_model(opened, tmp_path / "whole")
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1000)
    pretrained.save_model(opened, tmp_path / "chunks")
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "chunks" / "model.safetensors"
    ).read_bytes()


def test_as_a_library_a_model_is_called_with_tokens(run_dir):
    model = pretrained.load_model(FIXTURES / "olmo2", dtype="bfloat16")
    assert model(np.zeros((1, 4), np.int32)).shape == (1, 4, model.config.vocab)
    assert model.config.compute_dtype == "bfloat16"


def test_weights_of_a_run_that_are_not_what_was_written_are_refused(tmp_path):
    assert load([str(FIXTURES / "olmo2"), f"run_dir={tmp_path / 'run'}"]) == 0
    file = tmp_path / "run" / "weights" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    with pytest.raises(UserError, match=r"weights: is damaged \(model.safetensors is not what was written"):
        open_model(tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{fixture}"], "run_dir=RUN is missing: The run folder that is made"),
        (["run_dir={new}"], "FOLDER is missing"),
        (
            ["{fixture}", "{fixture}", "run_dir={new}"],
            "olmo2: unexpected extra word; this command takes FOLDER",
        ),
        (["{fixture}", "run_dir={full}"], "full: exists and is not empty"),
        (["{fixture}", "run_dir={new}", "dtype=float64"], "dtype=float64: must be one of float32, bfloat16"),
        (
            ["{fixture}", "run_dir={new}", "mesh.data=2"],
            "mesh.data=2: must be given together with a layout; add layout=NAME",
        ),
        (["{fixture}", "run_dir={new}", "dtypes=float32"], "there is no key 'dtypes'; did you mean 'dtype'?"),
        (["{nowhere}", "run_dir={new}"], "nowhere: no such folder"),
        (["{full}", "run_dir={new}"], "is no run folder"),
        (["{run}", "run_dir={new}"], "run: is a run folder already"),
    ],
)
def test_a_mistake_in_the_command_line_of_load_is_one_line(run_dir, tmp_path, capsys, arguments, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    names = {
        "fixture": FIXTURES / "olmo2",
        "run": run_dir,
        **{name: tmp_path / name for name in ("new", "full", "nowhere")},
    }
    assert load([argument.format(**names) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"logit_softcap": 30.0},
            "model.logit_softcap=30.0: no supported family can express this model; llama is closest",
        ),
        (
            {"activation": "gelu"},
            "model.activation=gelu: no supported family can express this model; llama is closest",
        ),
        (
            {"attention_softcap": 20.0},
            "model.attention_softcap=20.0: no supported family can express this model; llama is closest",
        ),
        (
            {"attention_scale": 0.3},
            "model.attention_scale=0.3: no supported family can express this model; llama is closest",
        ),
        ({"norm": "layer", "position": "learned"}, "model."),
        (
            {"parametrization": "mup", "base_embed": 32},
            "model.parametrization=mup: no family has its multipliers",
        ),
        (
            {"moe": MoEConfig(experts=4, dispatch="capacity")},
            "model.moe.dispatch=capacity: families send tokens to experts without a limit",
        ),
        ({"moe": MoEConfig(experts=4, shared_mlp=64)}, "model.moe.shared_mlp=64: "),
    ],
)
def test_a_model_that_no_family_has_is_refused_with_the_reason(changed, message):
    with pytest.raises(UserError, match=re.escape(message)):
        family_for(ModelConfig(vocab=300, **changed).resolved())


@pytest.mark.parametrize(
    ("changed", "family"),
    [
        ({}, "llama"),
        ({"window": 16}, "mistral"),
        ({"attention_scale": 64**-0.5}, "llama"),  # its default
        (
            {"embed": 100, "heads": 3, "head_dim": 32},
            "mistral",
        ),  # transformers 5 has no Llama of 3 heads that is 100 wide
        ({"bias_qkv": True}, "qwen2"),
        ({"qk_norm": "head", "window": 16, "window_layers": (2, 3)}, "qwen3"),
        ({"moe": MoEConfig(experts=4)}, "mixtral"),
        ({"moe": MoEConfig(experts=4, mlp=11)}, "mixtral"),  # no layer has model.mlp
        ({"moe": MoEConfig(experts=4, normalise=False, dense_layers=(0,)), "qk_norm": "head"}, "qwen3_moe"),
        ({"qk_norm": "projection", "norm_placement": "after"}, "olmo2"),
        (
            {
                "norm": "layer",
                "position": "learned",
                "activation": "gelu",
                "bias_qkv": True,
                "bias_out": True,
                "bias_mlp": True,
            },
            "gpt2",
        ),
    ],
)
def test_the_family_of_a_model_follows_from_its_configuration(changed, family):
    assert family_for(ModelConfig(vocab=300, **changed).resolved()).model_type == family


def test_a_mistake_in_the_command_line_of_save_is_one_line_and_nothing_is_written(run_dir, tmp_path, capsys):
    for more, message in (
        ("family=gpt2", "the family gpt2 cannot express this model"),
        ("dtype=int8", "dtype=int8: must be one of"),
        ("shard_size=many", "whole number"),
    ):
        assert save([str(run_dir), str(tmp_path / "out"), more]) == 2
        assert message in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_loading_takes_little_more_memory_than_the_weights(tmp_path):
    from tools.huggingface_memory import measure, write_random

    write_random(tmp_path / "model", 300_000_000)
    found = measure(tmp_path / "model")
    # The promise is the largest tensor and 1 GiB. A stacked copy on the host would be as large as the
    # weights, which are 0.3 GB here.
    assert found["weights"] > 250e6
    assert found["peak"] - found["before"] - found["weights"] < 200e6
