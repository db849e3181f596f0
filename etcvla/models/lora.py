"""Projections, and low-rank adapters on them (LoRA, arXiv 2106.09685): w + scale * a b, with w left alone.

Every product with a learned matrix is made here, so that an ordered list of rules can put an adapter on any of them.
An adapter runs as (x a) b, so that no gradient of the matrix's own size is ever made. Rules name a projection by the
path of its weight without a last `w` or `kernel`: `llm/layers/attn/q_einsum`, `llm/layers/mlp/linear`, `img/head`.

Names and axes are openpi's where openpi has them, which is in Gemma: `lora_a` and `lora_b` beside `w`, but
`gating_einsum_lora_a` beside `gating_einsum`, and every head with an adapter of its own. `b` starts at zero, so that
training starts at the checkpoint (openpi noise_samples both).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from etcvla import rules
from etcvla.models import ops

# Axes of a weight, of its a and of its b, by how the weight's path ends; r is the rank. A capital is the same axis,
# summed apart: openpi's output adapters add up the heads of a and of b each on their own.
AXES: rules.Rules = (
    (r"q_einsum(_\d)?/w", "ndh,ndr,nrh"),
    (r"kv_einsum(_\d)?/w", "ckdh,ckdr,ckrh"),
    (r"attn_vec_einsum(_\d)?/w", "nhd,nhr,Nrd"),
    (r"gating_einsum", "cdf,cdr,crf"),
    (r"(query|key|value)/kernel", "dnh,dr,rnh"),
    (r"out/kernel", "nhd,nhr,rd"),
    (r"embedding/kernel", "uvcd,uvcr,rd"),
    (r"linear", "fd,fr,rd"),
    (r"kernel", "df,dr,rf"),
)
_BARE = ("w", "kernel")  # names of weights that say nothing: the module's name does
_LECUN = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which projections have adapters; none by default. Raises ValueError for a rank that is none."""

    rules: tuple[
        tuple[str, int], ...
    ] = ()  # ordered (regex, rank), 0 for no adapter; the first full match wins
    scale: float = 1.0  # what papers call alpha / rank

    def __post_init__(self):
        for pattern, rank in self.rules:
            if not isinstance(rank, int) or rank < 0:
                raise ValueError(
                    f"model.lora: rule {pattern!r} has rank {rank!r}, expected a whole number, 0 for none"
                )

    def rank(self, path: str) -> int:
        """Of the adapter of the projection at `path`."""
        return next((rank for pattern, rank in self.rules if re.fullmatch(pattern, path)), 0)


@dataclasses.dataclass(frozen=True)
class Weight:
    """A projection's matrix and, if it has one, its adapter; `axes` as in `AXES`."""

    axes: str
    w: jax.Array
    a: jax.Array | None = None
    b: jax.Array | None = None  # scaled

    def __getitem__(self, i: int) -> Weight:
        """One slice along the first axis, which all three must share."""
        axes = ",".join(labels[1:] for labels in self.axes.split(","))
        return Weight(axes, self.w[i], *(None if x is None else x[i] for x in (self.a, self.b)))

    def part(self, axis: str, i: jax.Array, count: int) -> Weight:
        """The i-th of `count` equal parts along an axis."""

        def cut(labels, x):
            if x is None or axis not in labels:
                return x
            at = labels.index(axis)
            size = x.shape[at] // count
            return jax.lax.dynamic_slice_in_dim(x, i * size, size, at)

        return Weight(self.axes, *map(cut, self.axes.split(","), (self.w, self.a, self.b)))

    def einsum(self, equation: str, x: jax.Array) -> jax.Array:
        """jnp.einsum(equation, x, w), and the adapter's part."""
        # A weight of two axes is always x's last and the output's last: what `matmul` is for.
        out = ops.matmul(x, self.w) if self.w.ndim == 2 else jnp.einsum(equation, x, self.w)
        if self.a is None:
            return out
        inputs, out_axes = equation.split("->")
        x_axes, _, (_, a_axes, b_axes) = *inputs.split(","), self.axes.split(",")
        inner = "".join(axis for axis in out_axes if axis in x_axes + a_axes) + "r"
        read = jnp.einsum(f"{x_axes},{a_axes}->{inner}", x, self.a)
        return out + jnp.einsum(f"{inner},{b_axes}->{out_axes}", read, self.b)


def make_weight(
    module: nn.Module,
    name: str,
    init: Callable,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    lora: LoRA,
) -> Weight:
    """The parameter `name` of `module`, and those of its adapter if a rule gives it one; all as `dtype`."""
    w = module.param(name, init, shape)
    path = "/".join((*module.path, name))
    axes = axes_of(path)
    if not (rank := lora.rank(_projection(path))):
        return Weight(axes, _multiplied(w, dtype))
    sizes = dict(zip(axes.split(",")[0], shape, strict=True)) | {"r": rank}
    shapes = ([sizes[axis.lower()] for axis in labels] for labels in axes.split(",")[1:])
    prefix = "" if name in _BARE else f"{name}_"
    a = module.param(f"{prefix}lora_a", nn.initializers.normal(0.01), next(shapes))
    b = module.param(f"{prefix}lora_b", nn.initializers.zeros, next(shapes))
    return Weight(axes, *(x.astype(dtype) for x in (w, a, b * lora.scale)))


def _multiplied(w: Any, dtype: jnp.dtype) -> jax.Array:
    """The weight as `dtype`. A quantised one is multiplied out here, in the loop over layers: one at a time."""
    return (
        w.qvalue.astype(dtype) * w.scale.astype(dtype) if hasattr(w, "qvalue") else w.astype(dtype)
    )


class Projection(nn.Module):
    """A weight of its own name: `kernel` and `bias` as in flax's layers, or `w` without a bias as in Gemma."""

    equation: str  # of x and the weight
    shape: tuple[int, ...]
    dtype: jnp.dtype
    lora: LoRA
    bias: bool = True
    split: bool = False  # a product with each slice along the weight's first axis, which the equation does not name
    init: Callable = _LECUN

    @nn.compact
    def __call__(self, x):
        name = "kernel" if self.bias else "w"
        weight = make_weight(self, name, self.init, self.shape, self.dtype, self.lora)
        if (
            self.split
        ):  # one product would give the same, from a weight that XLA transposes first on a CPU
            return [
                weight[i].einsum(self.equation, x.astype(self.dtype)) for i in range(self.shape[0])
            ]
        y = weight.einsum(self.equation, x.astype(self.dtype))
        if not self.bias:
            return y
        axes, x_axes = weight.axes.split(",")[0], self.equation.split(",")[0]
        shape = tuple(
            size for axis, size in zip(axes, self.shape, strict=True) if axis not in x_axes
        )
        return y + self.param("bias", nn.initializers.zeros, shape).astype(self.dtype)


def dense(
    width: int, out_width: int, dtype: jnp.dtype, lora: LoRA, *, name: str, init: Callable = _LECUN
) -> Projection:
    """float[..., width] to float[..., out_width], with a bias."""
    return Projection("...d,df->...f", (width, out_width), dtype, lora, init=init, name=name)


def check(lora: LoRA, params: Any) -> None:
    """Raises ValueError if a projection of `params` matches no rule, or a rule no projection."""
    paths = (rules.path_str(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])
    if lora.rules:
        rules.assign(
            lora.rules, {_projection(path): 0 for path in paths if axes_of(path)}, "model.lora"
        )


def merge(params: Any, lora: LoRA) -> Any:
    """The parameters of the same model without adapters: each is added to its weight."""
    flat = flatten_dict(params, sep="/")
    for a_path in [path for path in flat if path.endswith("lora_a")]:
        a, b = flat.pop(a_path), flat.pop(f"{a_path[:-1]}b")
        stem = a_path.removesuffix("lora_a")
        path = next(
            p for p in (stem.removesuffix("_"), *(stem + name for name in _BARE)) if p in flat
        )
        w_axes, a_axes, b_axes = axes_of(path).split(",")
        layer = "l" * (a.ndim - len(a_axes))
        delta = jnp.einsum(f"{layer}{a_axes},{layer}{b_axes}->{layer}{w_axes}", a, b)
        flat[path] = (flat[path] + lora.scale * delta).astype(flat[path].dtype)
    return unflatten_dict(flat, sep="/")


def axes_of(path: str) -> str:
    """Of the weight at `path`; "" if it is no projection's."""
    return next((axes for pattern, axes in AXES if re.search(f"(^|/)({pattern})$", path)), "")


def _projection(path: str) -> str:
    """The name under which rules speak of the weight at `path`."""
    stem, _, name = path.rpartition("/")
    return stem if name in _BARE else path
