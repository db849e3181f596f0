"""Projections, and low-rank adapters on them (LoRA, arXiv 2106.09685).

An adapted weight is w + scale * a b, with w frozen.

All products with a learned matrix go through this module, so that an ordered list of rules can put
an adapter on any of them. An adapter is computed as (x a) b, so that no gradient of the size of the
matrix is needed. A rule names a projection by the path of its weight without a final `w` or
`kernel`: `llm/layers/attn/q_einsum`, `llm/layers/mlp/linear`, `img/head`.

In Gemma, the names and axes of adapters are those of openpi: `lora_a` and `lora_b` beside `w`, but
`gating_einsum_lora_a` beside `gating_einsum`, and one adapter per head. `b` starts at zero, so that
training starts at the checkpoint (openpi initializes both randomly).

Axes as in `etcvla.models.types`; only in this module, r is the rank of an adapter and c a slice of
a stacked weight.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from etcvla import rules
from etcvla.errors import UserError
from etcvla.models import ops
from etcvla.models.types import AnyShape, Shape

# (end of the weight's path, axes of the weight, its a and its b). A capital letter is the same
# axis, summed separately: openpi's output adapters sum the heads of a and of b independently.
AXES: rules.Rules = (
    (r"q_einsum(_\d)?/w", "ndh,ndr,nrh"),
    (r"kv_einsum(_\d)?/w", "ckdh,ckdr,ckrh"),
    (r"attn_vec_einsum(_\d)?/w", "nhd,nhr,Nrd"),
    (r"gating_einsum", "cdf,cdr,crf"),
    (r"(query|key|value)/kernel", "dnh,dr,rnh"),
    (r"out/kernel", "nhd,nhr,rd"),
    (r"embedding/kernel", "uvcd,uvcr,rd"),  # patch height and width, color channel
    (r"linear", "fd,fr,rd"),
    (r"kernel", "df,dr,rf"),
)
_GENERIC_NAMES = ("w", "kernel")  # names of weights that rules leave out
_LECUN = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which projections have adapters; none by default."""

    # Ordered (regex, rank); rank 0: no adapter. The first rule that matches the whole path is used.
    rules: tuple[tuple[str, int], ...] = ()
    scale: float = 1.0  # alpha / rank in the paper's terms

    def __post_init__(self):
        for pattern, rank in self.rules:
            if not isinstance(rank, int) or rank < 0:
                raise UserError(
                    f"model.lora: rule {pattern!r} has rank {rank!r}, expected a whole number"
                )

    def rank(self, projection: str) -> int:
        """Return the rank of a projection's adapter; 0 if it has none."""
        for pattern, rank in self.rules:
            if re.fullmatch(pattern, projection):
                return rank
        return 0


@dataclasses.dataclass(frozen=True)
class ModuleOptions:
    """Options that all modules share."""

    dtype: jnp.dtype  # of activations and matrix products
    lora: LoRA = LoRA()
    # Of the loop over layers; see `etcvla.models.scan`.
    remat: str = "none"
    unroll: int = 1


@dataclasses.dataclass(frozen=True)
class Weight:
    """The matrix w of a projection, and the matrices a and b of its adapter, if any."""

    axes: Sequence[str]  # axes of w, a and b, as in `AXES`
    arrays: Sequence[Array]  # w, or w, a and b; b is already multiplied by the scale

    def __getitem__(self, i: int) -> Weight:
        """Return one slice along the first axis, which w, a and b must share."""
        return Weight([labels[1:] for labels in self.axes], [x[i] for x in self.arrays])

    def part(self, axis: str, i: jax.Array, count: int) -> Weight:
        """Return the i-th of `count` equal parts along an axis."""
        parts = []
        for labels, x in zip(self.axes, self.arrays, strict=False):
            if axis in labels:
                position = labels.index(axis)
                size = x.shape[position] // count
                x = jax.lax.dynamic_slice_in_dim(x, i * size, size, position)
            parts.append(x)
        return Weight(self.axes, parts)

    def einsum(self, equation: str, x: AnyShape) -> AnyShape:
        """Compute jnp.einsum(equation, x, w), plus the adapter's product."""
        w, *adapter = self.arrays
        # With a matrix, the equation contracts the last axis of x and appends the last axis of w.
        out = ops.matmul(x, w) if w.ndim == 2 else jnp.einsum(equation, x, w)
        if not adapter:
            return out
        a, b = adapter
        inputs, out_axes = equation.split("->")
        x_axes, _ = inputs.split(",")
        _, a_axes, b_axes = self.axes
        hidden_axes = "".join(axis for axis in out_axes if axis in x_axes + a_axes) + "r"
        hidden = jnp.einsum(f"{x_axes},{a_axes}->{hidden_axes}", x, a)
        return out + jnp.einsum(f"{hidden_axes},{b_axes}->{out_axes}", hidden, b)


def make_weight(module: nn.Module, name: str, init: Callable, shape: Shape) -> Weight:
    """Create the parameter `name` of `module`, and those of its adapter if a rule gives it one.

    Args:
      module: owner of the parameters, with `options`.
      name: name of the weight.
      init: initializer of the weight.
      shape: shape of the weight.
    """
    dtype = module.options.dtype
    lora = module.options.lora
    w = module.param(name, init, shape)
    path = "/".join((*module.path, name))
    axes = axes_of(path).split(",")
    rank = lora.rank(_projection_name(path))
    if not rank:
        return Weight(axes, [_cast(w, dtype)])
    w_axes, a_axes, b_axes = axes
    sizes = dict(zip(w_axes, shape, strict=True))
    sizes["r"] = rank
    a_shape = [sizes[axis] for axis in a_axes]
    b_shape = [sizes[axis.lower()] for axis in b_axes]
    prefix = "" if name in _GENERIC_NAMES else f"{name}_"
    a = module.param(f"{prefix}lora_a", nn.initializers.normal(0.01), a_shape)
    b = module.param(f"{prefix}lora_b", nn.initializers.zeros, b_shape)
    return Weight(axes, [x.astype(dtype) for x in (w, a, b * lora.scale)])


def _cast(w: Any, dtype: jnp.dtype) -> jax.Array:
    """Return the weight as `dtype`.

    A quantized weight is dequantized here, inside the loop over layers, so one at a time.
    """
    if hasattr(w, "qvalue"):
        return w.qvalue.astype(dtype) * w.scale.astype(dtype)
    return w.astype(dtype)


class Projection(nn.Module):
    """A weight in a module of its own.

    It has `kernel` and `bias` as in Flax's layers, or `w` and no bias as in Gemma.
    """

    equation: str  # einsum of the input and the weight
    shape: Shape
    options: ModuleOptions
    bias: bool = True
    # Return one product per slice along the weight's first axis, which the equation leaves out.
    split: bool = False
    init: Callable = _LECUN

    @nn.compact
    def __call__(self, x: AnyShape) -> AnyShape | list[AnyShape]:
        """Return the projected `x`, or a list of one array per slice with `split`."""
        name = "kernel" if self.bias else "w"
        weight = make_weight(self, name, self.init, self.shape)
        x = x.astype(self.options.dtype)
        if self.split:
            # A single product would give the same numbers, but XLA would first transpose the weight
            # on a CPU.
            return [weight[i].einsum(self.equation, x) for i in range(self.shape[0])]
        y = weight.einsum(self.equation, x)
        if not self.bias:
            return y
        x_axes, _ = self.equation.split(",")
        sizes = zip(weight.axes[0], self.shape, strict=True)
        bias_shape = tuple(size for axis, size in sizes if axis not in x_axes)
        bias = self.param("bias", nn.initializers.zeros, bias_shape)
        return y + bias.astype(self.options.dtype)


def dense(
    width: int, out_width: int, options: ModuleOptions, *, name: str, init: Callable = _LECUN
) -> Projection:
    """Return a projection with a bias from float[..., width] to float[..., out_width]."""
    return Projection("...d,df->...f", (width, out_width), options, init=init, name=name)


def check_rules(lora: LoRA, params: Any) -> None:
    """Check that every projection of `params` matches a rule and every rule a projection.

    Raises: UserError otherwise.
    """
    if not lora.rules:
        return
    paths = flatten_dict(params, sep="/")
    projections = {_projection_name(path): 0 for path in paths if axes_of(path)}
    rules.assign(lora.rules, projections, "model.lora")


def merge(params: Any, lora: LoRA) -> Any:
    """Return the parameters of the same model without adapters: each is added to its weight."""
    flat = flatten_dict(params, sep="/")
    for a_path in [path for path in flat if path.endswith("lora_a")]:
        stem = a_path.removesuffix("lora_a")
        a = flat.pop(a_path)
        b = flat.pop(f"{stem}lora_b")
        candidates = [stem.removesuffix("_"), *(stem + name for name in _GENERIC_NAMES)]
        path = next(path for path in candidates if path in flat)
        w_axes, a_axes, b_axes = axes_of(path).split(",")
        layer_axis = "l" * (a.ndim - len(a_axes))  # parameters of scanned layers have it
        equation = f"{layer_axis}{a_axes},{layer_axis}{b_axes}->{layer_axis}{w_axes}"
        delta = jnp.einsum(equation, a, b)
        flat[path] = (flat[path] + lora.scale * delta).astype(flat[path].dtype)
    return unflatten_dict(flat, sep="/")


def axes_of(path: str) -> str:
    """Return the axes of the weight at `path`, as in `AXES`; "" for other parameters."""
    for pattern, axes in AXES:
        if re.search(f"(^|/)({pattern})$", path):
            return axes
    return ""


def _projection_name(path: str) -> str:
    """Return the name that rules use for the weight at `path`."""
    stem, _, name = path.rpartition("/")
    return stem if name in _GENERIC_NAMES else path
