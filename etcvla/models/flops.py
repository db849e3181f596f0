"""Count the FLOPs of a JAX function from its jaxpr, with all loops multiplied out.

The count includes the multiplications and additions (two per pair) of matrix products and
convolutions, the operations in which the peak of a chip is stated. It leaves out norms, softmax,
gathers and the optimizer. The jaxpr is counted as traced: what `jax.checkpoint` recomputes in the
backward pass counts again, and so do operations that XLA would remove as unused. The zeros of a
convolution's padding count like any other input.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count(fn: Callable, *args: Any) -> Counter[str]:
    """Count the FLOPs of `fn(*args)` by primitive. Nothing is computed.

    Args:
      fn: any function.
      *args: arrays or `jax.ShapeDtypeStruct`s.

    Of a `cond`, the most expensive branch counts. Raises ValueError for a `while` loop with FLOPs,
    because a jaxpr does not show its number of iterations.
    """
    jitted = fn if hasattr(fn, "trace") else jax.jit(fn)
    return count_jaxpr(jitted.trace(*args).jaxpr.jaxpr)


def count_jaxpr(jaxpr: Jaxpr) -> Counter[str]:
    """Count the FLOPs of a jaxpr by primitive; see `count`."""
    return sum(map(_count_equation, jaxpr.eqns), Counter())


def _count_equation(eqn: JaxprEqn) -> Counter[str]:
    name = eqn.primitive.name
    if name in _FORMULAS:
        out_size = math.prod(eqn.outvars[0].aval.shape)
        return Counter({name: 2 * out_size * _FORMULAS[name](eqn)})
    counts = [count_jaxpr(jaxpr) for jaxpr in _inner_jaxprs(eqn.params)]
    if name == "cond":
        return max(counts, key=Counter.total)
    total = sum(counts, Counter())
    if name == "while" and total:
        raise ValueError(
            "flops.count: a while loop with FLOPs; use a loop with a fixed number of iterations"
        )
    iterations = eqn.params["length"] if name == "scan" else 1
    return Counter({primitive: flops * iterations for primitive, flops in total.items()})


def _products_of_dot(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left_shape = eqn.invars[0].aval.shape
    return math.prod(left_shape[axis] for axis in contracted)


def _products_of_conv(eqn: JaxprEqn) -> int:
    kernel_shape = eqn.invars[1].aval.shape
    out_channel_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    return math.prod(kernel_shape) // kernel_shape[out_channel_axis]


# Primitive -> number of products that are summed for each number of the output.
_FORMULAS: dict[str, Callable[[JaxprEqn], int]] = {
    "dot_general": _products_of_dot,
    "conv_general_dilated": _products_of_conv,
}


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yield the jaxprs among an equation's parameters, whose names depend on the primitive."""
    for value in params.values():
        values = value if isinstance(value, (tuple, list)) else (value,)
        for item in values:
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
