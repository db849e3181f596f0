"""Quantize weights to eight bits for inference.

They need a quarter of the memory of float32, half of bfloat16.

Only weights are quantized, by qwix: one int8 per number and one float32 scale per output channel of
each layer, such that the largest absolute value becomes 127. Products are computed in floating
point as before. Biases, norms, position and token tables are not quantized, and neither are the
expert's projections of actions, state and time, which handle physical quantities.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from etcvla.errors import UserError
from etcvla.models import lora
from etcvla.models.types import Shape
from etcvla.names import lookup

DTYPES = {"int8": jnp.int8}


def quantize_params(params: Any, dtype: str) -> Any:
    """Return the parameters of the same model with weights of type `dtype`.

    Args:
      params: parameters without adapters (see `etcvla.models.lora.merge`).
      dtype: a name of `DTYPES`.

    Raises: UserError for an unknown `dtype`, or if qwix is not installed.
    """
    qtype = lookup(DTYPES, dtype, "type of quantized weights")
    try:
        import qwix
    except ModuleNotFoundError as error:
        raise UserError("quantized weights need qwix: pip install 'etcvla[serve]'") from error
    flat = flatten_dict(params, sep="/")
    for path, w in flat.items():
        axes = lora.axes_of(path)
        if axes and path.startswith(("img/", "llm/")):
            channel_axes = _channel_axes(axes, w.ndim)
            quantize = functools.partial(qwix.quantize, qtype=qtype, channelwise_axes=channel_axes)
            flat[path] = jax.jit(quantize)(w)
    return unflatten_dict(flat, sep="/")


def _channel_axes(axes: str, ndim: int) -> Shape:
    """Return the axes of a weight that its product does not sum over, layer axis included."""
    w_axes, a_axes, b_axes = axes.split(",")
    num_layer_axes = ndim - len(w_axes)
    summed = set(a_axes) - set(b_axes)
    channels = [num_layer_axes + i for i, axis in enumerate(w_axes) if axis not in summed]
    return (*range(num_layer_axes), *channels)
