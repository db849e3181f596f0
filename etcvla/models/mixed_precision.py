"""Differentiate float32 parameters in the narrower dtype in which the modules read them.

The parameters are float32, and most modules cast them to bfloat16 before use. There are two obvious
ways to compute the gradients, and both cost memory in proportion to the whole model (3 billion
parameters at full size):

- Cast all parameters at the start of the step and differentiate with respect to the cast ones. This
  keeps a bfloat16 copy of all parameters (6 GB) during the step.
- Differentiate with respect to the float32 parameters. JAX casts each gradient to the dtype of its
  parameter, so the gradients of all parameters exist in float32 (12 GB) instead of bfloat16 (6 GB).

This module avoids both. A parameter that is read in a narrower dtype is passed to the model as a
`CastOnRead`: the float32 value, and a placeholder of the narrow dtype that receives the gradient.
The cast happens where a module reads the parameter, which is one layer at a time inside the loop
over layers. The values of the placeholder are never used, so XLA never allocates it. A training
step needs two calls:

    variables = gradient_variables(params, dtypes, trainable)

    def loss_fn(variables):
        return loss(bind_variables(params, variables))

    grads = jax.grad(loss_fn)(variables)

Each gradient has the dtype in which its parameter is read.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from etcvla.models.types import AnyShape


@flax.struct.dataclass
class CastOnRead:
    """A float32 parameter whose gradient has the dtype in which a module reads it."""

    value: AnyShape  # float32
    placeholder: AnyShape  # of the narrow dtype; receives the gradient

    def astype(self, dtype: jnp.dtype) -> AnyShape:
        """Return the parameter as `dtype`; its gradient goes to `placeholder`, not to `value`."""
        return _cast(self.value, self.placeholder.astype(dtype))


@jax.custom_vjp
def _cast(value: jax.Array, placeholder: jax.Array) -> jax.Array:
    """Cast `value` to the dtype of `placeholder`."""
    # XLA moves a plain cast out of the loop over layers, which creates the copy of all parameters
    # after all.
    info = jnp.finfo(placeholder.dtype)
    rounded = jax.lax.reduce_precision(value, info.nexp, info.nmant)
    return rounded.astype(placeholder.dtype)


def _cast_fwd(value, placeholder):
    return _cast(value, placeholder), None


def _cast_bwd(_, grad):
    return None, grad


_cast.defvjp(_cast_fwd, _cast_bwd)


def gradient_variables(params: Any, dtypes: Any, trainable: Any) -> Any:
    """Return the tree to differentiate with respect to.

    Args:
      params: float32 parameters.
      dtypes: tree of the dtypes in which the modules read the parameters.
      trainable: tree of bools.

    Returns: a tree like `params`: None for a frozen parameter, the parameter itself if it is read
      in its own dtype, else a placeholder of the dtype in which it is read.
    """

    def _variable(param, dtype, is_trainable):
        if not is_trainable:
            return None
        if param.dtype == dtype:
            return param
        return jnp.zeros(param.shape, dtype)

    return jax.tree.map(_variable, params, dtypes, trainable)


def bind_variables(params: Any, variables: Any) -> Any:
    """Return the model's parameters, connected to `variables` from `gradient_variables`."""

    def _bind(param, variable):
        if variable is None:
            return param
        if variable.dtype == param.dtype:
            return variable
        return CastOnRead(param, variable)

    return jax.tree.map(_bind, params, variables)
