"""Weights of eight bits, for acting: a quarter of the memory that float32 takes, half of bfloat16.

Weights alone, by qwix: an int8 for each number and a float32 for each output channel of each layer, the largest
absolute value at 127. Products are of floats as before. Left as they are: biases, norms, position and token tables, and
the expert's ends, which are physical quantities.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from etcvla.models import lora
from etcvla.names import lookup

DTYPES = {"int8": jnp.int8}


def quantize_params(params: Any, dtype: str) -> Any:
    """The parameters of the same model with weights of this type; adapters must have been merged.

    Raises ValueError for an unknown type, and without qwix.
    """
    qtype = lookup(DTYPES, dtype, "type of quantised weights")
    try:
        import qwix
    except ModuleNotFoundError as error:
        raise ValueError("quantised weights need qwix: pip install 'etcvla[serve]'") from error
    flat = flatten_dict(params, sep="/")
    for path, w in flat.items():
        axes = lora.axes_of(path)
        if axes and path.startswith(("img/", "llm/")):
            flat[path] = jax.jit(
                functools.partial(
                    qwix.quantize, qtype=qtype, channelwise_axes=_channels(axes, w.ndim)
                )
            )(w)
    return unflatten_dict(flat, sep="/")


def _channels(axes: str, ndim: int) -> tuple[int, ...]:
    """Which axes of a weight its product does not sum over: those before its own are the layers."""
    w, a, b = axes.split(",")
    layers = ndim - len(w)
    return (
        *range(layers),
        *(layers + i for i, axis in enumerate(w) if axis not in set(a) - set(b)),
    )
