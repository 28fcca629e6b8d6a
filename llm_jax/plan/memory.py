"""The memory of one device in a compiled train step, by kind."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.experiment import Experiment
from llm_jax.layout.gpu_compile import CompiledStep
from llm_jax.layout.layout import MeshPlacement
from llm_jax.model.kernels.cudnn import backward_workspace_bytes
from llm_jax.run.compile import abstract_frozen
from llm_jax.train.state import TrainModel
from llm_jax.train.step import Models


def memory_by_kind(
    step: CompiledStep, program: TrainModel, models: Models, experiment: Experiment
) -> dict[str, int]:
    """Bytes of one device by kind, and their `total`: XLA's own figure plus the workspace that XLA does not
    see. models: the objective's frozen models.

    | kind          | content                                                                             |
    | ------------- | ----------------------------------------------------------------------------------- |
    | `parameters`  | trained weights at rest, in their dtype                                             |
    | `frozen`      | weights that are not trained: the model's own and those of frozen models            |
    | `gradients`   | of trained weights, float32, placed as moments; in XLA's temporaries in any layout  |
    | `moments`     | the optimizer's state                                                               |
    | `average`     | the moving average of the weights, with train.ema_decay                             |
    | `batch`       | the batch, counters and metrics, and XLA's padding of arguments                     |
    | `activations` | other temporaries at the peak: for the backward pass, gathered weights, logits |
    | `workspace`   | the maximum that cuDNN's backward kernel allocates at run time (attention=cudnn)    |
    """
    state, xla = program.abstract_state(), step.memory_bytes()
    kinds = {
        "parameters": bytes_per_device(state.parameters),
        "frozen": bytes_per_device(abstract_frozen(program, models)),
        "moments": bytes_per_device(state.moments),
        "average": bytes_per_device(state.average),
    }
    gradients = min(bytes_per_device(abstract_gradients(program)), xla["temporaries"])
    kinds["batch"] = xla["total"] - xla["temporaries"] - sum(kinds.values())
    kinds["gradients"], kinds["activations"] = gradients, xla["temporaries"] - gradients
    kinds["workspace"] = workspace_bytes(experiment, program.place)
    return kinds | {"total": sum(kinds.values())}


def lower_bound_bytes(program: TrainModel, models: Models, experiment: Experiment) -> int:
    """A lower bound of a step's memory, in bytes: parameters, frozen ones too, moments, average, gradients,
    and the input of each block.

    The inputs of blocks don't count for a pipeline, whose stages may keep less of the stream.
    """
    state, place, m, t = program.abstract_state(), program.place, experiment.model, experiment.train
    frozen = abstract_frozen(program, models)
    bound = bytes_per_device(
        (state.parameters, frozen, state.moments, state.average, abstract_gradients(program))
    )
    if not place.axes("layers"):
        shape = (t.batch_size // t.microbatches, t.sequence_length, m.embed)
        stream = jax.ShapeDtypeStruct(
            shape, m.compute_dtype, sharding=place.sharding(("batch", "sequence", "embed"), "residual", shape)
        )
        bound += m.layers * bytes_per_device(stream)
    return bound


def abstract_gradients(program: TrainModel) -> Any:
    """Abstract gradients, float32 and placed as in the step (`train.step`)."""
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=at),
        *(program.trainable(tree) for tree in (program.abstract, program.shardings("optimizer"))),
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def workspace_bytes(experiment: Experiment, place: MeshPlacement) -> int:
    """Bytes that cuDNN's attention allocates at run time, unknown to the compiler."""
    m, t = experiment.model, experiment.train
    if m.attention != "cudnn":
        return 0

    def local(dim: str, size: int) -> int:
        return -(-size // place.size(place.axes(dim, "attention")))

    assert m.head_dim
    rows = local("batch", t.batch_size // t.microbatches)
    return backward_workspace_bytes(
        rows, local("sequence", t.sequence_length), local("heads", m.heads), m.head_dim, m.max_segments
    )
