"""The mesh (data, fsdp, tensor) and where everything lies on it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from etcvla import rules
from etcvla.models.ops import BATCH_AXES

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(
    BATCH_AXES
)  # rows are split over data and fsdp; parameters over fsdp and tensor

# Shapes in comments; the leading axis of a layer's parameters is the layer. D lies on fsdp, heads and MLPs on tensor.
# Of several places the first counts whose axes the mesh divides: a TPU keeps 128 numbers of a last axis that has 72.
PARAM_RULES: rules.Rules = (
    (
        r"llm/layers/attn/q_einsum(_\d)?/w",
        PartitionSpec(None, "tensor", "fsdp", None),
    ),  # [layer, N, D, H]
    (
        r"llm/layers/attn/kv_einsum(_\d)?/w",
        PartitionSpec(None, None, None, "fsdp", None),
    ),  # [layer, 2, K, D, H]
    (
        r"llm/layers/attn/attn_vec_einsum(_\d)?/w",
        PartitionSpec(None, "tensor", None, "fsdp"),
    ),  # [layer, N, H, D]
    (
        r"llm/layers/mlp(_\d)?/gating_einsum",
        PartitionSpec(None, None, "fsdp", "tensor"),
    ),  # [layer, 2, D, F]
    (r"llm/layers/mlp(_\d)?/linear", PartitionSpec(None, "tensor", "fsdp")),  # [layer, F, D]
    (
        r"llm/layers/.*norm(_\d)?/Dense_0/kernel",
        PartitionSpec(None, "fsdp", "tensor"),
    ),  # [layer, D, 3 D]
    (r"llm/final_norm_\d/Dense_0/kernel", PartitionSpec("fsdp", "tensor")),  # [D, 3 D]
    (r"llm/embedder/input_embedding", PartitionSpec("tensor", "fsdp")),  # [V, D]
    (
        r"img/Transformer/encoderblock/.*/(query|key|value)/kernel",  # [layer, D, N, H]
        [
            PartitionSpec(None, None, ("tensor", "fsdp"), None),
            PartitionSpec(None, "fsdp", "tensor", None),
        ],
    ),
    (
        r"img/Transformer/encoderblock/.*/out/kernel",  # [layer, N, H, D]
        [
            PartitionSpec(None, ("tensor", "fsdp"), None, None),
            PartitionSpec(None, "tensor", None, "fsdp"),
        ],
    ),
    (
        r"img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel",
        PartitionSpec(None, "fsdp", "tensor"),
    ),
    (
        r"img/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel",
        PartitionSpec(None, "tensor", "fsdp"),
    ),
    (r"img/head/kernel", PartitionSpec("fsdp", None)),
    (r"img/embedding/kernel", PartitionSpec(None, None, None, "fsdp")),
    (r"img/.*", PartitionSpec()),
    (r"llm/.*norm.*", PartitionSpec()),
    (r".*lora_[ab]", PartitionSpec()),  # thin
    (r"(action_)?time_mlp_(in|out)/kernel", PartitionSpec("fsdp", None)),
    (
        r"(state_proj|action_in_proj|action_out_proj|(action_)?time_mlp_(in|out))/(kernel|bias)",
        PartitionSpec(),
    ),
)

# Of the compiler. A product that gathers its weight piece by piece does not take in what is computed of its result,
# element by element: that goes through memory, and half as much again of an MLP lies there.
TPU_OPTIONS = {"xla_tpu_enable_windowed_einsum_for_all_gather": False}


def make_mesh(sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of the config; -1 stands for the devices that the other axes leave.

    Raises ValueError if the sizes do not make up the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = np.array([sizes[axis] for axis in AXES])
    if (shape == -1).sum() > 1 or ((shape < 1) & (shape != -1)).any():
        raise ValueError(
            f"mesh: sizes are 1 or more, and only one axis may be -1, got {dict(sizes)}"
        )
    known = int(np.prod(shape[shape != -1]))
    shape = np.where(shape == -1, len(devices) // known, shape)
    if np.prod(shape) != len(devices):
        raise ValueError(
            f"mesh: {dict(zip(AXES, shape.tolist(), strict=True))} does not make up {len(devices)} "
            "devices"
        )
    # jax.make_mesh splits axes of the slice on v5e alone, and would refuse 4 x 16 on 8 x 8 chips of v6e.
    grid = mesh_utils.create_device_mesh(shape.tolist(), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Raises ValueError if a batch has no rows, or those of a part do not divide among the devices that split them."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected 1 row or more")
    if microbatches < 1 or batch_size % (parts * microbatches):
        times = "" if microbatches == 1 else f" x optim.microbatches {microbatches}"
        raise ValueError(
            f"batch_size {batch_size} does not divide among mesh.data x mesh.fsdp = {parts}{times}"
        )


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every parameter, by `PARAM_RULES`.

    Raises ValueError naming a parameter that no rule matches, or whose axis the mesh does not divide.
    """

    def place(path, leaf, spec):
        if found := _undivided(leaf.shape, spec, mesh):
            raise ValueError(f"{found} does not divide {rules.path_str(path)} {list(leaf.shape)}")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, params, _specs(params, mesh))


def _specs(params: Any, mesh: Mesh | AbstractMesh) -> Any:
    """The PartitionSpec of every parameter."""

    def choose(leaf, places):
        places = places if isinstance(places, list) else [places]
        return next((spec for spec in places if not _undivided(leaf.shape, spec, mesh)), places[-1])

    return jax.tree.map(
        choose, params, rules.assign(PARAM_RULES, params, "sharding", all_used=False)
    )


def _undivided(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> str:
    """What of the mesh does not divide an array's axes, such as "mesh.fsdp = 4"; "" if all does."""
    for size, axes in zip(shape, spec, strict=False):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        if size % (parts := math.prod(mesh.shape[axis] for axis in axes)):
            return f"mesh.{' x mesh.'.join(axes)} = {parts}"
    return ""


def placed(params: Any, mesh: Mesh) -> Any:
    """Shapes of parameters as ShapeDtypeStructs that know where they will lie."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        params,
        param_shardings(params, mesh),
    )


def opt_shardings(state: Any, params: Any, shardings: Any) -> Any:
    """Shardings of the optimizer's state: moments lie as their parameters, factored ones as the axes that they keep,
    counters everywhere."""

    def places(param, where, own):
        return jax.tree.map(
            lambda leaf: NamedSharding(where.mesh, _kept(leaf.shape, param.shape, where.spec)), own
        )

    return jax.tree.map(places, params, shardings, state)


def _kept(shape: tuple[int, ...], whole: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
    """The spec of an array of `whole` for one that lacks an axis of it, or none."""
    axes = (*spec, *(None,) * (len(whole) - len(spec)))
    if shape == whole:
        return spec
    lacking = [i for i in range(len(whole)) if whole[:i] + whole[i + 1 :] == shape]
    return (
        PartitionSpec(*axes[: lacking[0]], *axes[lacking[0] + 1 :])
        if lacking and shape
        else PartitionSpec()
    )


def constrain_params(params: Any) -> Any:
    """The parameters (or their gradients), said to lie as their rules have it on the mesh that the step runs on.

    Said of what is cast for the products, or XLA gathers first and casts after, twice the bytes; said of gradients,
    each is reduced once, to where it lies. None stands for a parameter that is left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return params
    return jax.tree.map(jax.lax.with_sharding_constraint, params, _specs(params, mesh))


@functools.cache
def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """int64: the rows of a global batch that this process's devices read, in rising order.

    Which ones depends on how the devices lie on the mesh: a pod's hosts need not have neighbours, and hosts that split
    only `tensor` among themselves all read the same.
    """
    places = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places]))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """This process's rows (`local_rows`) as part of global arrays, split over data and fsdp."""
    sharding, rows = NamedSharding(mesh, BATCH), local_rows(batch_size, mesh)

    def put(value):
        def shard(index):
            first, stop, _ = index[0].indices(batch_size)
            at = np.searchsorted(rows, first)
            return value[at : at + stop - first]

        return jax.make_array_from_callback((batch_size, *value.shape[1:]), sharding, shard)

    return {name: put(value) for name, value in batch.items()}
