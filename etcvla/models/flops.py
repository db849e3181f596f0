"""Count the FLOPs of a JAX function from its jaxpr, with all loops multiplied out.

The count includes the multiplications and additions (two per pair) of matrix products and
convolutions, the operations in which the peak of a chip is stated. It leaves out norms, softmax,
gathers and the optimizer. The jaxpr is counted as
traced: what `jax.checkpoint` recomputes in the backward pass counts again, and so do operations
that XLA would remove as unused. The zeros of a convolution's padding count like any other input.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jax.interpreters import partial_eval


def count(fn: Callable, *args: Any) -> Counter[str]:
    """Count the FLOPs of `fn(*args)` by primitive. Nothing is computed.

    Args:
      fn: any function.
      *args: arrays or `jax.ShapeDtypeStruct`s.

    Of a `cond`, the most expensive branch counts. Raises ValueError for a `while` loop with FLOPs
    whose number of iterations depends on data.
    """
    jitted = fn if hasattr(fn, "trace") else jax.jit(fn)
    return count_jaxpr(jitted.trace(*args).jaxpr.jaxpr)


def count_jaxpr(jaxpr: Jaxpr) -> Counter[str]:
    """Count the FLOPs of a jaxpr by primitive; see `count`."""
    total = Counter()
    for eqn in jaxpr.eqns:
        total += _count_equation(eqn)
    return total


def _count_equation(eqn: JaxprEqn) -> Counter[str]:
    name = eqn.primitive.name
    if name == "dot_general":
        return Counter({name: _count_dot(eqn)})
    if name == "conv_general_dilated":
        return Counter({name: _count_conv(eqn)})
    counts = [count_jaxpr(jaxpr) for jaxpr in _inner_jaxprs(eqn.params)]
    if name == "cond":
        return max(counts, key=Counter.total)
    total = sum(counts, Counter())
    iterations = 1
    if name == "scan":
        iterations = eqn.params["length"]
    elif name == "while" and total:
        iterations = _count_iterations(eqn)
    return Counter({primitive: flops * iterations for primitive, flops in total.items()})


def _count_dot(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left_shape = eqn.invars[0].aval.shape
    out_size = math.prod(eqn.outvars[0].aval.shape)
    return 2 * out_size * math.prod(left_shape[axis] for axis in contracted)


def _count_conv(eqn: JaxprEqn) -> int:
    kernel_shape = eqn.invars[1].aval.shape
    out_channel_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    out_size = math.prod(eqn.outvars[0].aval.shape)
    return 2 * out_size * math.prod(kernel_shape) // kernel_shape[out_channel_axis]


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yield the jaxprs among an equation's parameters, whose names depend on the primitive."""
    for value in params.values():
        values = value if isinstance(value, (tuple, list)) else (value,)
        for item in values:
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _count_iterations(eqn: JaxprEqn) -> int:
    """Count the iterations of a `while` loop by running only what its condition reads.

    Raises ValueError if that depends on data.
    """
    cond = eqn.params["cond_jaxpr"]
    body = eqn.params["body_jaxpr"]
    num_cond_consts = eqn.params["cond_nconsts"]
    num_consts = num_cond_consts + eqn.params["body_nconsts"]
    values = [var.val if isinstance(var, Literal) else None for var in eqn.invars]
    cond_consts = values[:num_cond_consts]
    body_consts = values[num_cond_consts:num_consts]
    carry = values[num_consts:]
    cond_part, cond_reads = partial_eval.dce_jaxpr(cond.jaxpr, [True])
    body_part, body_reads, carried = _slice_of_body(
        body.jaxpr, len(body_consts), cond_reads[num_cond_consts:]
    )

    def _run(jaxpr, consts, reads, inputs):
        read = [value for value, is_read in zip(inputs, reads, strict=True) if is_read]
        if any(value is None for value in read):
            raise ValueError(
                "flops.count: the number of iterations of a while loop with FLOPs depends on data; "
                "use a loop with a fixed number of iterations instead"
            )
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*read)

    iterations = 0
    while _run(cond_part, cond.consts, cond_reads, cond_consts + carry)[0]:
        outputs = iter(_run(body_part, body.consts, body_reads, body_consts + carry))
        carry = [next(outputs) if is_carried else None for is_carried in carried]
        iterations += 1
    return iterations


def _slice_of_body(
    body: Jaxpr, num_consts: int, carried: list[bool]
) -> tuple[Jaxpr, list[bool], list[bool]]:
    """Return the part of a loop's body that computes the `carried` values.

    Returns: the reduced jaxpr, which inputs it reads, and which values it must carry for them.
    """
    while True:
        part, reads = partial_eval.dce_jaxpr(body, carried)
        needed = [a or b for a, b in zip(carried, reads[num_consts:], strict=True)]
        if needed == carried:
            return part, reads, carried
        carried = needed
