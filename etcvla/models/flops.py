"""FLOPs of a JAX function, counted from its jaxpr with every loop multiplied out.

Counted are the multiplications and additions (two for each pair) of matrix products and convolutions, which is what a
chip's peak is stated in; norms, softmax, gathers and the optimizer are left out. The jaxpr is taken as it was traced:
what `jax.checkpoint` computes again in the backward pass counts again, and what XLA would find unused counts too. A
convolution counts zeros of its padding like any other input.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters import partial_eval


def count(fn: Callable, *args: Any) -> Counter[str]:
    """FLOPs by primitive of `fn(*args)`; args may be `jax.ShapeDtypeStruct`s, so that nothing is computed.

    Of a `cond` the dearer branch counts. Raises ValueError for a `while` loop with FLOPs whose turns depend on data.
    """
    return count_jaxpr((fn if hasattr(fn, "trace") else jax.jit(fn)).trace(*args).jaxpr.jaxpr)


def count_jaxpr(jaxpr: Jaxpr) -> Counter[str]:
    """The same of what is traced already."""
    return sum((_of_equation(eqn) for eqn in jaxpr.eqns), Counter())


def _of_equation(eqn) -> Counter[str]:
    name = eqn.primitive.name
    if name in _MULTIPLIES:
        return Counter({name: _MULTIPLIES[name](eqn)})
    inner = [count_jaxpr(jaxpr) for jaxpr in _jaxprs(eqn.params)]
    if name == "cond":
        return max(inner, key=Counter.total)
    total, times = sum(inner, Counter()), 1
    if name == "scan":
        times = eqn.params["length"]
    elif name == "while" and total:
        times = _turns(eqn)
    return Counter({name: flops * times for name, flops in total.items()})


def _of_dot(eqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)


def _of_conv(eqn) -> int:
    kernel, out_axis = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec[0]
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // kernel[out_axis]


_MULTIPLIES = {"dot_general": _of_dot, "conv_general_dilated": _of_conv}


def _jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The jaxprs that an equation calls, whatever its primitive names them."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _turns(eqn) -> int:
    """How often a `while` loop turns, found by running what its condition reads and nothing else.

    Raises ValueError if that starts from data.
    """
    cond, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    values = [v.val if isinstance(v, Literal) else None for v in eqn.invars]
    tests, steps, carry = (
        values[:num_cond],
        values[num_cond : num_cond + num_body],
        values[num_cond + num_body :],
    )
    test, test_reads = partial_eval.dce_jaxpr(cond.jaxpr, [True])
    step, step_reads, carried = _closure(body.jaxpr, num_body, test_reads[num_cond:])

    def run(jaxpr, closed, reads, inputs):
        read = [value for value, use in zip(inputs, reads, strict=True) if use]
        if any(value is None for value in read):
            raise ValueError(
                "flops.count: a while loop has FLOPs, but how often it turns depends on data; count a "
                "fixed number of turns instead"
            )
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))(*read)

    turns = 0
    while run(test, cond, test_reads, tests + carry)[0]:
        new = iter(run(step, body, step_reads, steps + carry))
        carry = [next(new) if use else None for use in carried]
        turns += 1
    return turns


def _closure(
    body: Jaxpr, num_consts: int, carried: list[bool]
) -> tuple[Jaxpr, list[bool], list[bool]]:
    """The part of a loop's body that keeps the `carried` values going, what it reads, and what it carries for that."""
    while True:
        part, reads = partial_eval.dce_jaxpr(body, carried)
        wider = [a or b for a, b in zip(carried, reads[num_consts:], strict=True)]
        if wider == carried:
            return part, reads, carried
        carried = wider
