"""cuDNN attention: the list of documents (on the CPU), the compiled step (GPU compiler, no GPU), the numbers
(a GPU)."""

from __future__ import annotations

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from llm_jax.core.errors import UserError
from llm_jax.layout import gpu_compile, gpu_options
from llm_jax.model.kernels import cudnn
from tests.cudnn_contract import kernel_by_contract

B, T, H, G, K, DOCUMENTS = 4, 512, 8, 2, 64, 5
SLOTS = DOCUMENTS + 1  # and the padding
FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


def random_segments(seed: int, rows: int = B, length: int = T, most: int = DOCUMENTS) -> np.ndarray:
    """Rows of 1 to `most` documents of ids 1, 2, ...; some end in padding, id 0."""
    rng = np.random.default_rng(seed)
    segments = np.zeros((rows, length), np.int32)
    for row in segments:
        ends = np.sort(rng.choice(np.arange(1, length), rng.integers(1, most + 1), replace=False))
        if rng.random() < 0.5:
            ends[-1] = length
        for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            row[start:end] = i + 1
    return segments


def listed(segments: np.ndarray) -> list[tuple[int, int]]:
    """(flat start, length) of every run of equal ids, by a loop."""
    runs = []
    for b, row in enumerate(segments):
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
        runs += [(b * len(row) + start, end - start) for start, end in itertools.pairwise(edges)]
    return runs


# --- pure parts, on the CPU ---


@pytest.mark.parametrize("seed", range(5))
def test_documents_are_the_runs_of_equal_ids_and_cover_every_token(seed):
    segments, slots = random_segments(seed), SLOTS
    documents = jax.jit(cudnn.find_documents, static_argnums=1)(segments, slots)
    runs = listed(segments)
    starts, lengths = np.ravel(documents.starts_BM1), np.ravel(documents.lengths_BM)
    assert (documents.starts_BM1.shape, documents.lengths_BM.shape) == ((B, slots + 1), (B, slots))
    assert [*zip(starts[: len(runs)], lengths, strict=False)] == runs
    assert (starts[len(runs) :] == B * T).all()
    assert (lengths[len(runs) :] == 0).all()
    assert not documents.overflow
    of_token = [n for n, (_, length) in enumerate(runs) for _ in range(length)]
    assert (np.ravel(documents.slot_BT) == of_token).all()


def test_equal_ids_in_neighbouring_rows_are_different_documents():
    documents = cudnn.find_documents(jnp.ones((3, 8), jnp.int32), 2)
    assert np.ravel(documents.lengths_BM).tolist() == [8, 8, 8, 0, 0, 0]


def test_slots_are_shared_by_the_rows_up_to_the_last_one():
    segments = np.array([[1, 2, 3, 4], [1, 1, 1, 1]], np.int32)  # 4 documents and 1
    assert not cudnn.find_documents(segments, 3).overflow
    assert cudnn.find_documents(segments, 2).overflow


def test_more_documents_than_slots_are_seen_and_nothing_is_read_out_of_bounds():
    segments = np.arange(16, dtype=np.int32).reshape(2, 8)
    documents = cudnn.find_documents(jnp.asarray(segments), 3)
    assert documents.overflow
    assert np.ravel(documents.starts_BM1)[:7].tolist() == [0, 8, 16, 16, 16, 16, 16]
    assert np.ravel(documents.lengths_BM).tolist() == [8, 8, 0, 0, 0, 0]


def test_softmax_statistics_return_to_their_places():
    documents = cudnn.find_documents(jnp.asarray(random_segments(1)), SLOTS)
    stats = jnp.asarray(np.random.default_rng(0).normal(size=(B, H, T)), jnp.float32)
    by_document = cudnn._by_document(stats, documents)
    assert by_document.shape == (B * (SLOTS), H, T)
    assert np.isfinite(by_document).all()  # also where nothing is: the kernel multiplies before it masks
    assert (cudnn._by_token(by_document, documents) == stats).all()
    start, length = listed(random_segments(1))[2]
    assert (by_document[2, :, :length] == stats[start // T, :, start % T : start % T + length]).all()


def arrays(dtype=jnp.bfloat16, t=T, h=H, g=G, k=K):
    return jnp.zeros((1, t, h, k), dtype), jnp.zeros((1, t, g, k), dtype), jnp.zeros((1, t, g, k), dtype)


@pytest.mark.parametrize(
    ("changed", "options", "names"),
    [
        ({"dtype": jnp.float32}, {}, "model.compute_dtype=float32"),
        ({"k": 100}, {}, "model.head_dim=100"),
        ({"k": 256}, {}, "model.head_dim=256"),
        ({}, {"window": 0}, "model.window=0"),
        ({}, {"window": 8, "causal": False}, "model.window=8"),
        ({"t": 1}, {}, "1 tokens"),
        ({}, {"segments_BT": np.ones((1, T), np.int32)}, "model.max_segments=None"),
    ],
)
def test_unsupported_arrays_are_refused_by_key(changed, options, names):
    with pytest.raises(UserError, match=re.escape(names)):
        cudnn.fused_attention(
            *arrays(**changed), **{"segments_BT": None, "scale": 0.1, "window": None} | options
        )


def test_offsets_that_would_not_fit_int32_are_refused():
    q, k = (
        jax.ShapeDtypeStruct((64, 8192, 64, 64), jnp.bfloat16),
        jax.ShapeDtypeStruct((64, 8192, 8, 64), jnp.bfloat16),
    )
    with pytest.raises(UserError, match=re.escape("2**31")):
        jax.eval_shape(
            lambda q, k, v: cudnn.fused_attention(q, k, v, segments_BT=None, scale=0.1, window=None), q, k, k
        )


def test_another_jax_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    with pytest.raises(UserError, match=r"install JAX 0\.10 or 0\.11"):
        cudnn.fused_attention(*arrays(), segments_BT=None, scale=0.1, window=None)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the default backend is not a CPU")
def test_a_cpu_raises_and_does_not_fall_back():
    step = jax.jit(lambda q, k, v: cudnn.fused_attention(q, k, v, segments_BT=None, scale=0.1, window=None))
    with pytest.raises(Exception, match=r"dot_product_attention_fwd.*cpu"):
        step.lower(*arrays())


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_the_kernels_operands_give_the_right_attention_and_gradients(monkeypatch, packed, window):
    """The kernel is replaced by a NumPy model of its contract, so operands and offsets of grouped heads are
    tested, but not the kernel."""
    kernel_by_contract(monkeypatch)
    agree_with_float32(packed, window)


def test_options_that_the_user_sets_are_left_alone():
    flags = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=/tmp/x"}
    layer = dict.fromkeys(gpu_options.COLLECTIVES, 2**28)
    mine = gpu_options.compiler_options(8, layer, environment={})
    theirs = gpu_options.compiler_options(8, layer, environment=flags)
    assert set(mine) - set(theirs) == {"xla_gpu_enable_latency_hiding_scheduler"}
    assert mine["xla_gpu_all_gather_combine_threshold_bytes"] == 2**28 // gpu_options.COLLECTIVES_PER_LAYER
    assert "xla_gpu_all_gather_combine_threshold_bytes" not in gpu_options.compiler_options(
        1, layer, environment={}
    )


# --- the compiled step, without a GPU ---


def absent_gpus(hardware: str, axes: dict[str, int]) -> jax.sharding.Mesh:
    """A mesh of absent GPUs."""
    return gpu_compile.topology_mesh(hardware, axes)


def compiled(
    mesh,
    *,
    segments=True,
    window=None,
    kv_axis: str | None = "tensor",
    remat=None,
    layers=0,
    kernel=None,
    **options,
):
    """A loss and its gradients with attention inside `shard_map`, optionally in a scan over layers and
    remat."""
    kernel = kernel or (
        lambda q, k, v, s: cudnn.fused_attention(
            q, k, v, segments_BT=s if segments else None, scale=K**-0.5, window=window, max_segments=SLOTS
        )
    )
    q_spec, kv_spec = P("data", None, "tensor"), P("data", None, kv_axis)
    local = jax.shard_map(kernel, mesh=mesh, in_specs=(q_spec, kv_spec, kv_spec, P("data")), out_specs=q_spec)

    def loss(q, k, v, s):
        block = local if remat is None else jax.checkpoint(local, policy=remat)
        if not layers:
            return block(q, k, v, s).astype(jnp.float32).sum()
        return (
            jax.lax.scan(lambda x, _: (jnp.sin(block(x, k, v, s)), None), q, length=layers)[0]
            .astype(jnp.float32)
            .sum()
        )

    def abstract(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, spec))

    q, kv = abstract((B, T, H, K), jnp.bfloat16, q_spec), abstract((B, T, G, K), jnp.bfloat16, kv_spec)
    step = jax.value_and_grad(loss, argnums=(0, 1, 2))
    step = jax.jit(step, compiler_options=options or None)
    return gpu_compile.compile_for(mesh, step, (q, kv, kv, abstract((B, T), jnp.int32, P("data"))))


@pytest.mark.gpu_compile
@pytest.mark.parametrize("hardware", ["h100", "h200"])
@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("segments", [False, True])
def test_the_fused_kernel_runs_forward_and_backward_and_no_array_is_sequence_squared(
    hardware, window, segments
):
    step = compiled(absent_gpus(hardware, {"data": 2, "tensor": 2}), segments=segments, window=window)
    assert [c for c in step.custom_calls() if "cudnn" in c] == [FORWARD, BACKWARD]
    assert not step.buffers_with(T, T)
    for call in (line for line in step.text.splitlines() if 'custom_call_target="__cudnn' in line):
        assert (
            f'"sliding_window_length": {window or 0}' in call
            or f'"sliding_window_length":{window or 0}' in call
        )
        assert re.search(rf'"max_seg_per_batch": ?{SLOTS if segments else 1}\b', call)
        assert re.search(r'"mask_type": ?"PADDING_CAUSAL"' if segments else r'"mask_type": ?"CAUSAL"', call)


@pytest.mark.gpu_compile
def test_a_sequence_squared_buffer_would_be_seen():
    def scores(q, k, v, s):
        return jax.nn.dot_product_attention(
            q, k, v, mask=s[:, None, :, None] == s[:, None, None, :], implementation="xla"
        )

    for layers in (0, 3):  # also inside the loop of a scan
        step = compiled(absent_gpus("h100", {"data": 2, "tensor": 2}), kernel=scores, layers=layers)
        assert step.buffers_with(T, T)
        assert FORWARD not in step.custom_calls()


@pytest.mark.gpu_compile
def test_saving_the_named_output_keeps_the_kernel_from_running_twice():
    mesh = absent_gpus("h100", {"data": 2, "tensor": 2})
    save = jax.checkpoint_policies.save_only_these_names(cudnn.SAVED)
    saved = compiled(mesh, layers=3, remat=save)
    nothing = compiled(mesh, layers=3, remat=jax.checkpoint_policies.nothing_saveable)
    assert (saved.custom_calls().count(FORWARD), saved.custom_calls().count(BACKWARD)) == (1, 1)
    assert (nothing.custom_calls().count(FORWARD), nothing.custom_calls().count(BACKWARD)) == (2, 1)
    slots = B // 2 * (SLOTS)  # statistics are kept by token, not by slot
    assert not saved.buffers_with(3, slots)
    assert saved.buffers_with(3, B // 2, H // 2, T)


@pytest.mark.gpu_compile
def test_keys_shared_by_the_tensor_axis_get_the_sum_of_its_gradients():
    mesh = absent_gpus("h100", {"data": 2, "tensor": 2})
    reduced = re.compile(r" = \(*bf16\[.* all-reduce(-start)?\(")  # of the loss there is another, in float32
    assert reduced.search(compiled(mesh, kv_axis=None).text)
    assert not reduced.search(compiled(mesh, kv_axis="tensor").text)


@pytest.mark.gpu_compile
def test_every_training_option_is_known_to_this_xla():
    mesh = absent_gpus("h200", {"data": 2, "tensor": 4})
    options = gpu_options.compiler_options(
        8, layer_bytes=dict.fromkeys(gpu_options.COLLECTIVES, 2**28), deterministic=True, environment={}
    )
    compiled(mesh, kv_axis=None, **options)


# --- numbers, where there is a GPU ---


def reference(q, k, v, segments, window):
    """Attention by its definition, in float32."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, H // G, axis=2) for x in (k, v))
    i, j = jnp.arange(T)[:, None], jnp.arange(T)[None]
    mask = (i >= j) & (i - j < (window or T)) & (segments[:, :, None] == segments[:, None, :])
    scores = jnp.einsum("BTHK,BSHK->BHTS", q, k, precision="highest") * K**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("BHTS,BSHK->BTHK", weights, v, precision="highest")


def agree_with_float32(packed: bool, window: int | None) -> None:
    q, k, v, dout = (
        jax.random.normal(jax.random.key(i), (B, T, n, K), jnp.bfloat16) for i, n in enumerate((H, G, G, H))
    )
    segments = jnp.asarray(random_segments(3)) if packed else jnp.ones((B, T), jnp.int32)

    def fused(q, k, v):
        return cudnn.fused_attention(
            q,
            k,
            v,
            segments_BT=segments if packed else None,
            scale=K**-0.5,
            window=window,
            max_segments=SLOTS,
        )

    out, pull = jax.vjp(jax.jit(fused), q, k, v)
    out_ref, pull_ref = jax.vjp(lambda *x: reference(*x, segments, window), q, k, v)
    # bfloat16 has 8 bits: 2**-8 of each tensor's scale, times a few for sums of rounded products
    for x, ref in zip((out, *pull(dout)), (out_ref, *pull_ref(dout.astype(jnp.float32))), strict=True):
        x, ref = np.asarray(x, np.float32), np.asarray(ref, np.float32)
        assert np.abs(x - ref).max() < 0.02 * np.abs(ref).max()
        assert np.linalg.norm(x - ref) < 0.01 * np.linalg.norm(ref)


GPU = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="needs an NVIDIA GPU (Hopper or newer) and the extra `cuda`"
)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("window", [None, 1, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_output_and_gradients_agree_with_float32(packed, window):
    agree_with_float32(packed, window)


@pytest.mark.gpu
@GPU
def test_too_many_documents_give_nothing_but_nan():
    q, k, v, dout = (
        jax.random.normal(jax.random.key(i), (B, T, n, K), jnp.bfloat16) for i, n in enumerate((H, G, G, H))
    )
    segments = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32) // 8, (B, T))
    out, pull = jax.vjp(
        lambda *x: cudnn.fused_attention(
            *x, segments_BT=segments, scale=K**-0.5, window=None, max_segments=SLOTS
        ),
        q,
        k,
        v,
    )
    assert jnp.isnan(out).all()
    assert jnp.isnan(pull(dout)[0]).all()
