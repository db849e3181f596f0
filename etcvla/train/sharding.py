"""The device mesh, and the sharding of parameters, optimizer state and batches on it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from etcvla import rules
from etcvla.errors import UserError
from etcvla.models.ops import BATCH_AXES

AXES = ("data", "fsdp", "tensor")  # of the mesh
BATCH_SPEC = P(BATCH_AXES)  # rows are split over data and fsdp

# (regex of a parameter's path, PartitionSpec). The comments give the shapes; the first axis of a
# layer's parameters is the layer. Model widths D are split over fsdp, heads and MLP widths F over
# tensor. Of a list of specs, the first one is used whose axes the mesh divides: SigLIP's heads have
# width 72, and a TPU pads the last axis to 128, so its other axes are split where possible.
PARAM_RULES: rules.Rules = (
    (r"llm/layers/attn/q_einsum(_\d)?/w", P(None, "tensor", "fsdp", None)),  # [layer, N, D, H]
    (
        r"llm/layers/attn/kv_einsum(_\d)?/w",
        P(None, None, None, "fsdp", None),
    ),  # [layer, 2, K, D, H]
    (
        r"llm/layers/attn/attn_vec_einsum(_\d)?/w",
        P(None, "tensor", None, "fsdp"),
    ),  # [layer, N, H, D]
    (r"llm/layers/mlp(_\d)?/gating_einsum", P(None, None, "fsdp", "tensor")),  # [layer, 2, D, F]
    (r"llm/layers/mlp(_\d)?/linear", P(None, "tensor", "fsdp")),  # [layer, F, D]
    (r"llm/layers/.*norm(_\d)?/Dense_0/kernel", P(None, "fsdp", "tensor")),  # [layer, D, 3 D]
    (r"llm/final_norm_\d/Dense_0/kernel", P("fsdp", "tensor")),  # [D, 3 D]
    (r"llm/embedder/input_embedding", P("tensor", "fsdp")),  # [vocabulary, D]
    (
        r"img/Transformer/encoderblock/.*/(query|key|value)/kernel",  # [layer, D, N, H]
        [P(None, None, ("tensor", "fsdp"), None), P(None, "fsdp", "tensor", None)],
    ),
    (
        r"img/Transformer/encoderblock/.*/out/kernel",  # [layer, N, H, D]
        [P(None, ("tensor", "fsdp"), None, None), P(None, "tensor", None, "fsdp")],
    ),
    (r"img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel", P(None, "fsdp", "tensor")),
    (r"img/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel", P(None, "tensor", "fsdp")),
    (r"img/head/kernel", P("fsdp", None)),
    (r"img/embedding/kernel", P(None, None, None, "fsdp")),
    (r"img/.*", P()),
    (r"llm/.*norm.*", P()),
    (r".*lora_[ab]", P()),  # small
    (r"(action_)?time_mlp_(in|out)/kernel", P("fsdp", None)),
    (
        r"(state_proj|action_in_proj|action_out_proj|(action_)?time_mlp_(in|out))/(kernel|bias)",
        P(),
    ),
)

# Compiler options. With this optimization, a matrix product gathers its weight in pieces and is not
# fused with the element-wise operations on its result. The result then goes through memory, which
# holds half as much again of an MLP's activations.
TPU_OPTIONS = {"xla_tpu_enable_windowed_einsum_for_all_gather": False}


def make_mesh(sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """Make the mesh of the config.

    Args:
      sizes: axis -> number of devices; -1 takes all devices that the other axes leave.
      devices: default: all.

    Raises UserError if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    fixed = [sizes[axis] for axis in AXES if sizes[axis] != -1]
    if len(fixed) < len(AXES) - 1 or any(size < 1 for size in fixed):
        raise UserError(
            f"mesh: sizes must be 1 or more, and only one axis may be -1, got {dict(sizes)}"
        )
    remaining = len(devices) // math.prod(fixed)
    shape = [remaining if sizes[axis] == -1 else sizes[axis] for axis in AXES]
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh: {dict(zip(AXES, shape, strict=True))} does not multiply to {len(devices)} "
            "devices"
        )
    # jax.make_mesh splits axes of a TPU slice on v5e only: it would refuse 4 x 16 on 8 x 8 of v6e.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Raise UserError if a batch is empty, or does not divide among devices and microbatches."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, expected 1 row or more")
    if microbatches < 1 or batch_size % (shards * microbatches):
        factor = "" if microbatches == 1 else f" x optim.microbatches {microbatches}"
        raise UserError(
            f"batch_size {batch_size} is not a multiple of mesh.data x mesh.fsdp = {shards}{factor}"
        )


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """Return the NamedSharding of every parameter by `PARAM_RULES`.

    Raises UserError, which names the parameter, if the mesh does not divide an axis.
    """

    def _sharding(path, leaf, spec):
        mesh_axes = _undivided_axes(leaf.shape, spec, mesh)
        if mesh_axes:
            raise UserError(
                f"{mesh_axes} does not divide {rules.path_str(path)} {list(leaf.shape)}"
            )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(_sharding, params, _param_specs(params, mesh))


def _param_specs(params: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Return the PartitionSpec of every parameter."""

    def _choose(leaf, specs):
        if not isinstance(specs, list):
            return specs
        for spec in specs:
            if not _undivided_axes(leaf.shape, spec, mesh):
                return spec
        return specs[-1]

    specs = rules.assign(PARAM_RULES, params, "sharding", all_used=False)
    return jax.tree.map(_choose, params, specs)


def _undivided_axes(shape: tuple[int, ...], spec: P, mesh: Mesh | AbstractMesh) -> str:
    """Name the first axes of the mesh that do not divide an array, as "mesh.fsdp = 4"; or ""."""
    for size, axes in zip(shape, spec, strict=False):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        shards = math.prod(mesh.shape[axis] for axis in axes)
        if size % shards:
            return f"mesh.{' x mesh.'.join(axes)} = {shards}"
    return ""


def add_shardings(params: Any, mesh: Mesh) -> Any:
    """Return the shapes of parameters as ShapeDtypeStructs with their shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        params,
        param_shardings(params, mesh),
    )


def opt_shardings(state: Any, params: Any, shardings: Any) -> Any:
    """Return the shardings of the optimizer's state.

    Moments are sharded as their parameters, factored moments as the axes that they keep, and
    counters are replicated.
    """

    def _param_state_shardings(param, sharding, param_state):
        def _leaf_sharding(leaf):
            spec = _spec_of_moment(leaf.shape, param.shape, sharding.spec)
            return NamedSharding(sharding.mesh, spec)

        return jax.tree.map(_leaf_sharding, param_state)

    return jax.tree.map(_param_state_shardings, params, shardings, state)


def _spec_of_moment(shape: tuple[int, ...], param_shape: tuple[int, ...], spec: P) -> P:
    """Return the spec of an array that has the parameter's shape, or lacks one of its axes."""
    if shape == param_shape:
        return spec
    axes = [*spec] + [None] * (len(param_shape) - len(spec))
    for i in range(len(param_shape)):
        if shape and param_shape[:i] + param_shape[i + 1 :] == shape:
            return P(*axes[:i], *axes[i + 1 :])
    return P()


def constrain_params(params: Any) -> Any:
    """Constrain parameters, or their gradients, to the shardings of their rules.

    Use it inside a step, which runs on a mesh. Constraining the low-precision copies of parameters
    makes XLA cast before it gathers; otherwise it gathers twice the bytes. Constraining gradients
    makes it reduce each of them once, into its shards. None, for a parameter that is left out,
    stays.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return params
    return jax.tree.map(jax.lax.with_sharding_constraint, params, _param_specs(params, mesh))


@functools.cache
def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Return the rows of a global batch that this process's devices read, int64, increasing.

    They depend on the order of devices in the mesh: the rows of a host need not be contiguous, and
    hosts that share `tensor` only all read the same rows.
    """
    rows = np.arange(batch_size)
    sharding = NamedSharding(mesh, BATCH_SPEC)
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([rows[index] for index in indices]))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """Put this process's rows (`local_rows`) on its devices, as parts of global arrays."""
    sharding = NamedSharding(mesh, BATCH_SPEC)
    rows = local_rows(batch_size, mesh)

    def _put(value: np.ndarray) -> jax.Array:
        def _shard(index: tuple[slice, ...]) -> np.ndarray:
            first, stop, _ = index[0].indices(batch_size)
            offset = np.searchsorted(rows, first)
            return value[offset : offset + stop - first]

        return jax.make_array_from_callback((batch_size, *value.shape[1:]), sharding, _shard)

    return {name: _put(value) for name, value in batch.items()}


def abstract_batch(
    rows: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and shardings that `put_batch` gives a batch with rows like these."""
    sharding = NamedSharding(mesh, BATCH_SPEC)
    shapes = {}
    for name, value in rows.items():
        shape = (batch_size, *value.shape[1:])
        shapes[name] = jax.ShapeDtypeStruct(shape, value.dtype, sharding=sharding)
    return shapes
