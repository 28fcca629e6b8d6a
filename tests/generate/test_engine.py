"""What the engine promises: the distribution of the training forward pass at every position, and requests
that don't affect each other."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from llm_jax.core.errors import UserError
from llm_jax.experiment import Experiment
from llm_jax.generate.decode_layout import decoding_layout
from llm_jax.generate.engine import Engine
from llm_jax.generate.request import Request, Result
from llm_jax.generate.terminal import run_and_print
from llm_jax.layout.layout import Layout, MeshPlacement
from llm_jax.layout.mesh import make_mesh
from llm_jax.layout.presets import PRESETS, preset
from llm_jax.model.config import LatentConfig, ModelConfig, MoEConfig, RopeScaling
from llm_jax.pretrained.model import PretrainedModel
from llm_jax.train.optimizer import OptimizerConfig
from llm_jax.train.state import TrainModel

VOCAB = 96
BASE = ModelConfig(layers=2, embed=32, heads=4, mlp=48, vocab=VOCAB, init_std=0.2)
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "blocked, grouped-query heads": {
        "attention": "blocked", "kv_heads": 2, "tied_embeddings": False, "logit_softcap": 5.0,
    },
    "a window": {"window": 9, "kv_heads": 1},
    "a window of one ring, unrolled": {"window": 16, "attention": "blocked", "scan_layers": False},
    "norms of heads": {
        "qk_norm": "head", "kv_heads": 2, "rope_scaling": RopeScaling(kind="llama3", original_positions=32),
    },
    "norms of projections, after": {"qk_norm": "projection", "norm_placement": "after"},
    "GPT-2": {
        "position": "learned", "positions": 48, "norm": "layer", "activation": "gelu",
        "bias_qkv": True, "bias_out": True, "bias_mlp": True,
    },
    "yarn, mup": {
        "rope_scaling": RopeScaling(kind="yarn", original_positions=32, factor=4),
        "parametrization": "mup", "base_embed": 16, "base_head_dim": 4,
    },
    "experts": {"moe": MoEConfig(experts=4, top_k=2, shared_mlp=16, dense_layers=(0,)), "layers": 3},
    "Gemma 3": {
        "layers": 3, "window": 9, "window_layers": (0, 2), "rope_theta_window": 100.0,
        "norm_placement": "both", "norm_centred": True, "attention_softcap": 3.0, "attention_scale": 0.2,
        "embedding_scale": 5.7, "kv_heads": 2, "activation": "geglu",
    },
    "Pythia": {
        "parallel_blocks": True, "rope_fraction": 0.25, "norm": "layer", "tied_embeddings": False,
        "rope_scaling": RopeScaling(kind="linear"),
    },
    "DeepSeek": {
        "latent": LatentConfig(query_rank=12, kv_rank=10, nope_dim=6, rope_dim=4, value_dim=5),
        "head_dim": 10, "layers": 3, "attention_scale": 0.4, "bias_qkv": True,
        "moe": MoEConfig(
            experts=8, top_k=2, scores="sigmoid", bias=True, groups=2, top_groups=1, scale=2.5, shared_mlp=16,
            dense_layers=(0,),
        ),
    },
}  # fmt: skip


class Letters:
    """A tokenizer that needs no training: one token a character, and token i decodes to "<i>"."""

    vocab_size, bos_id, eos_id, eos_ids = VOCAB, 1, 2, (2,)

    def encode(self, text: str) -> list[int]:
        return [3 + ord(c) % (VOCAB - 3) for c in text]

    def decode(self, ids) -> str:
        return "".join(f"<{i}>" for i in ids)


def opened(
    layout: Layout | None = None, mesh: dict[str, int] | None = None, **changes: Any
) -> PretrainedModel:
    """A model with random weights, norms and biases too."""
    config = dataclasses.replace(BASE, **changes).resolved()
    layout = layout or preset("single")
    program = TrainModel(config, OptimizerConfig(), MeshPlacement(layout, make_mesh(layout, mesh or {})))
    random = np.random.default_rng(3)
    parameters = jax.tree.map(
        lambda w: (0.2 * random.standard_normal(w.shape)).astype(w.dtype), program.abstract
    )
    parameters = jax.device_put(parameters, program.shardings("stored"))
    return PretrainedModel(Path(), Experiment(model=config), program, parameters, Letters(), 0)  # type: ignore[arg-type]


def forward(model: PretrainedModel, rows: list[list[int]], length: int = 48) -> np.ndarray:
    """Log-probabilities of the training forward pass at every position, [rows, length, V]."""
    tokens_BT = np.array([[*row, *[0] * length][:length] for row in rows], np.int32)
    program = model.program

    @jax.jit
    def logprobs(parameters: Any, tokens_BT: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(program.model(parameters)(tokens_BT))

    with jax.set_mesh(model.place.mesh):
        return np.asarray(logprobs(model.parameters, tokens_BT))


LONG = "a prompt of more than a ring has room for"
PROMPTS = ("", "longer than 9", "x")


def compare(result: Result, prompt: list[int], logprobs_TV: np.ndarray, tolerance: float) -> None:
    """Every token's log-probability, and the five most likely, are those of the forward pass; greedy tokens
    are its most likely."""
    for i, token in enumerate(result.tokens):
        expected_V = logprobs_TV[len(prompt) + i - 1]
        assert abs(result.logprobs[i] - expected_V[token]) < tolerance, i
        if result.request.temperature == 0:
            assert token == expected_V.argmax()
        for other, logprob in result.top[i]:
            assert abs(logprob - expected_V[other]) < tolerance
        assert result.top[i][0][1] >= np.max(expected_V) - tolerance


@pytest.mark.parametrize("name", MODELS)
def test_decoding_gives_the_distribution_of_the_training_forward_pass(name):
    """Tolerance 1e-4 nats: float32 sums in another order (a cache in blocks, products of one row), through a
    few layers with weights of order 0.2."""
    model = opened(**MODELS[name])
    engine = Engine.of(model, slots=2, max_tokens=48)  # the third request takes over a used slot
    prompts = (*PROMPTS, *([LONG] if model.config.window else []))
    requests = [
        Request(p, max_tokens=min(30, 47 - len(p)), temperature=float(i % 2), seed=i, logprobs=5)
        for i, p in enumerate(prompts)
    ]
    results = engine.generate(requests)
    ids = [[1, *Letters().encode(request.prompt)] for request in requests]
    expected = forward(
        model, [[*prompt, *result.tokens] for prompt, result in zip(ids, results, strict=True)]
    )
    for prompt, result, logprobs_TV in zip(ids, results, expected, strict=True):
        assert len(result.tokens) == result.request.max_tokens or result.finished == "eos"
        compare(result, prompt, logprobs_TV, 1e-4)


@pytest.mark.parametrize(
    "name", ["blocked, grouped-query heads", pytest.param("DeepSeek", marks=pytest.mark.slow)]
)
def test_long_texts_are_read_in_blocks(name):
    """Blocks have 128 positions; here one to three are read. A short text has the same bits beside a long
    one, for which more of the cache is read."""
    model = opened(**MODELS[name])
    engine = Engine.of(model, slots=2, max_tokens=300)
    long = Request(
        ids=(1, *np.random.default_rng(0).integers(3, VOCAB, 200).tolist()),
        max_tokens=95,
        temperature=1,
        seed=2,
        logprobs=5,
    )
    short = Request("short", max_tokens=130, temperature=1, seed=1, logprobs=5)
    (alone,) = engine.generate([short])
    results = engine.generate([short, long])
    assert (results[0].tokens, results[0].logprobs) == (alone.tokens, alone.logprobs)
    ids = [[1, *Letters().encode("short")], list(long.ids)]
    expected = forward(
        model, [[*prompt, *result.tokens] for prompt, result in zip(ids, results, strict=True)], 300
    )
    for prompt, result, logprobs_TV in zip(ids, results, expected, strict=True):
        compare(result, prompt, logprobs_TV, 1e-4)
    assert len(results[1].tokens) > 60  # past position 256, where a block begins


REQUESTS = [
    Request("the first", max_tokens=25, temperature=0),
    Request("a second one that is longer", max_tokens=9, temperature=0.9, top_k=7, seed=5),
    Request("", max_tokens=30, temperature=1.1, top_p=0.8, seed=6),
    Request("fourth", max_tokens=20, min_p=0.05, repetition_penalty=1.3, seed=7),
    Request("the fifth", max_tokens=12, temperature=1.5, seed=2**32 - 1),
    Request("the first", max_tokens=25, temperature=0.7, seed=1),
]


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        ("blocked, grouped-query heads", 8),
        ("a window", 3),
        pytest.param("DeepSeek", 5, marks=pytest.mark.slow),
        pytest.param("DeepSeek", 8, marks=pytest.mark.slow),
    ],
)
def test_a_request_gives_the_same_bits_alone_and_beside_others(name, slots):
    """In any slot, whichever request used it before, whatever joins and leaves meanwhile."""
    engine = Engine.of(opened(**MODELS[name]), slots=slots, max_tokens=48)
    alone = [engine.generate([request])[0] for request in REQUESTS]
    random = np.random.default_rng(0)
    for _ in range(4):
        order, submitted = random.permutation(len(REQUESTS)).tolist(), {}
        while order or engine.busy:
            for _ in range(random.integers(0, 3)):
                if order:
                    i = order.pop()
                    submitted[engine.submit(REQUESTS[i])] = i
            engine.step()
        for number, i in submitted.items():
            result = engine.results.pop(number)
            assert (result.tokens, result.logprobs, result.text) == (
                alone[i].tokens,
                alone[i].logprobs,
                alone[i].text,
            ), i


LAYOUTS = {
    "tensor": (None, {}),  # 8 over 2 key heads: each device has those that its queries need
    "fsdp_tensor": ({"data": 4, "tensor": 2}, {}),
    "pipeline_tensor": (
        {"stage": 2, "data": 2, "tensor": 2},
        {"layers": 4, "window": 9, "window_layers": (1, 3)},
    ),
    "context_ulysses": ({"data": 2, "context": 4}, {}),
    "expert_tensor": (
        {"data": 2, "expert": 2, "tensor": 2},
        MODELS["DeepSeek"] | {"latent": LatentConfig(8, 16, 6, 4, 6)},
    ),
}


@pytest.mark.parametrize(
    "name", [n if "_tensor" in n else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS]
)
def test_layouts_decode_what_one_device_does(name):
    """On eight simulated devices. Tolerance 2e-4 nats: sums over devices are in yet another order. Greedy
    tokens are equal."""
    mesh, changes = LAYOUTS[name]
    changes = {"heads": 8, "kv_heads": 2, **changes} if "latent" not in changes else {"heads": 8, **changes}
    requests = [Request(p, max_tokens=14, temperature=0, logprobs=3) for p in PROMPTS]
    one, many = (
        Engine.of(opened(layout, sizes, **changes), slots=2, max_tokens=48)
        for layout, sizes in ((None, None), (preset(name), mesh))
    )
    for expected, result in zip(one.generate(requests), many.generate(requests), strict=True):
        assert result.tokens == expected.tokens
        np.testing.assert_allclose(result.logprobs, expected.logprobs, atol=2e-4)


def test_a_decoding_layout_splits_no_positions_and_has_no_stages():
    for layout in PRESETS.values():
        made = decoding_layout(layout)
        made.check()
        for table in (made.compute, made.stored, made.residual, made.attention):
            assert not {"sequence", "keys", "layers"} & set(table)
    assert decoding_layout(preset("context_ring")).compute["batch"] == "data, context"
    assert decoding_layout(preset("pipeline")).stored["embed"] == "stage"


def test_learned_positions_end_the_text():
    engine = Engine.of(opened(**MODELS["GPT-2"]), slots=1, max_tokens=500)
    (result,) = engine.generate([Request("xyz", max_tokens=100, temperature=1, seed=2)])
    assert result.finished == "positions"
    assert len(result.tokens) == 48 - 4
    with pytest.raises(UserError, match=r"has 101 tokens, and model.positions=48 leaves no room"):
        engine.submit(Request("x" * 100))


def test_requests_that_do_not_fit_are_refused_and_running_ones_can_be_ended():
    engine = Engine.of(opened(), slots=1, max_tokens=32)
    with pytest.raises(
        UserError,
        match=r"max_tokens=40: after 2 tokens of the prompt, max_tokens=32 of the engine has room for 30",
    ):
        engine.submit(Request("x", max_tokens=40))
    with pytest.raises(UserError, match="ids=96: must be from 0 to 95"):
        engine.submit(Request(ids=(1, 96)))
    with pytest.raises(UserError, match="ids=96"):
        engine.generate([Request("x", max_tokens=5), Request(ids=(1, 96), max_tokens=5)])
    assert not engine.busy
    first, second = (engine.submit(Request("x", max_tokens=20, seed=i)) for i in range(2))
    engine.step()
    engine.cancel(first)
    while engine.busy:
        engine.step()
    assert engine.results[first].finished == "cancelled"
    assert engine.results[second].finished in ("max_tokens", "eos")


def test_the_time_to_the_first_token_is_without_that_of_compiling():
    """Also for a prompt that waits for another one's end, and with log-probabilities."""
    engine, logged = Engine.of(opened(), slots=1, max_tokens=32), []
    engine.programs.log = logged.append
    begun = time.perf_counter()
    first, second = engine.generate([Request("x", max_tokens=3, logprobs=2), Request("y", max_tokens=3)])
    seconds = time.perf_counter() - begun - engine.programs.compile_seconds
    assert first.seconds_to_first < second.seconds_to_first < seconds
    assert [line.split(":")[0] for line in logged] == [
        "compiled prefill",
        "compiled log-probabilities",
        "compiled decode",
    ]


@pytest.mark.parametrize(("slots", "name"), [(1, "plain"), (2, "a window"), (1, "a window"), (1, "DeepSeek")])
def test_a_step_copies_no_cache(slots, name):
    """It is written in place and read as it lies, two blocks of it. XLA tends to copy it for either."""
    engine = Engine.of(opened(**MODELS[name]), slots=slots, max_tokens=256)
    engine.generate([Request(ids=tuple(range(3, 90)) * 2, max_tokens=3)])
    (program,) = [compiled for (kind, _), compiled in engine.programs.compiled.items() if kind == "decode"]
    shapes = {"f32[{}]".format(",".join(map(str, x.shape))) for x in jax.tree.leaves(engine.state.caches)}
    copies = [
        line
        for line in program.as_text().splitlines()
        if any(f"= {shape}" in line for shape in shapes) and " copy(" in line
    ]
    assert copies == []


def test_a_text_begins_before_other_prompts_are_read():
    engine = Engine.of(opened(), slots=3, max_tokens=32)
    first, second = (engine.submit(Request("x", max_tokens=4, seed=i)) for i in range(2))
    steps = [[event.id for event in engine.step()] for _ in range(4)]
    assert steps == [[first], [second], [first, second], [first, second]]


def test_a_model_that_outputs_nan_writes_no_text(capsys):
    model = opened()
    broken = dataclasses.replace(model, parameters=jax.tree.map(lambda w: w * np.nan, model.parameters))
    with pytest.raises(UserError, match=r"the model outputs NaN: training diverged or"):
        run_and_print(Engine.of(broken, slots=1, max_tokens=32), [Request("x", max_tokens=8)])


def test_no_text_is_broken_by_log_lines_of_the_engine(capsys):
    """Programs are compiled while texts are printed; the lines about that come before or after a text."""
    engine = Engine.of(opened(), slots=1, max_tokens=200, log=print)
    results, _ = run_and_print(
        engine, [Request("a", max_tokens=180, temperature=1, seed=i) for i in range(2)]
    )
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines() if line.startswith("compiled")] == [
        "compiled prefill",
        *["compiled decode"] * 2,
    ]
    for result in results:
        assert f"\na{result.text}\n" in printed


def test_new_weights_are_used_from_then_on():
    model, other = opened(), opened(init_std=0.1, tied_embeddings=True)
    engine = Engine.of(model, slots=1, max_tokens=32)
    request = Request("x", max_tokens=8, temperature=0)
    before = engine.generate([request])[0]
    engine.update(jax.tree.map(lambda w: 2 * w, other.parameters))
    assert engine.generate([request])[0].logprobs != before.logprobs
    engine.update(model.parameters)
    assert engine.generate([request])[0].logprobs == before.logprobs
