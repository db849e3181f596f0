"""The pure functions of the model: norms, rotary positions, masks and attention.

Axes as in `etcvla.models.types`. The functions compute in float32 where rounding matters (norms,
softmax, rotary positions) and return the dtype of their input.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from etcvla.models.types import (
    AnyShape,
    AttentionMask,
    ImageMask,
    Keys,
    Positions,
    Queries,
    QueryMask,
    RopeTables,
    Scalar,
    TextInts,
    TextMask,
    Vectors,
)

BATCH_AXES = ("data", "fsdp")  # the mesh axes over which the batch is split

# Gemma's value of a masked logit. It is finite, so a query whose keys are all masked does not give
# NaN.
MASKED = -2.3819763e38


# Activations of the MLPs, by their names in a config. PaliGemma has the first; the second is faster
# on a CPU, where the tanh and its gradient take long beside the products of a narrow MLP.
ACTIVATIONS = {"gelu_tanh": functools.partial(jax.nn.gelu, approximate=True), "relu": jax.nn.relu}


# ---- sharding ------------------------------------------------------------------------------------


def shard_batch(x: Float[Array, "B *T D"], last: str | None = None) -> Float[Array, "B *T D"]:
    """Constrain the batch axis of `x` to (data, fsdp), and its last axis to the mesh axis `last`.

    Applied to embedded tokens, to the output of each layer and to logits. XLA propagates the
    constraint in between; without it, XLA may gather the batch instead of the parameters. Does
    nothing without a mesh.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    middle = (None,) * (x.ndim - 2)
    axes = (BATCH_AXES, *middle, last)[: x.ndim]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def mesh_size(axis: str) -> int:
    """Return the number of devices along a mesh axis of the current step; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1)


# ---- products and gradients ----------------------------------------------------------------------


@jax.custom_vjp
def scale_gradient(x: AnyShape, scale: Scalar) -> AnyShape:
    """Return `x`; multiply its gradient by `scale` in the backward pass."""
    return x


def _scale_gradient_fwd(x, scale):
    return x, scale


def _scale_gradient_bwd(scale, grad):
    return (grad * scale).astype(grad.dtype), jnp.zeros_like(scale)


scale_gradient.defvjp(_scale_gradient_fwd, _scale_gradient_bwd)


@jax.custom_vjp
def matmul(x: Vectors, w: Float[Array, "D F"]) -> Float[Array, "*B F"]:
    """Compute x @ w, with a faster weight gradient.

    The product for the weight gradient has the narrower of its two factors on the left.

    On a CPU, XLA transposes the left factor together with the operations that produce it. JAX puts
    the gradient of the output there, which in an MLP is the wide factor and the result of many
    operations. That transposition takes half of the MLP's time.
    """
    return x @ w


def _matmul_fwd(x, w):
    # With symbolic_zeros, `perturbed` says whether a factor has a gradient. Save only what those
    # gradients need.
    saved_x = x.value if w.perturbed else None
    saved_w = w.value if x.perturbed else None
    return x.value @ w.value, (saved_x, saved_w)


def _matmul_bwd(saved, grad):
    x, w = saved
    x_grad = None if w is None else grad @ w.T
    w_grad = None if x is None else _weight_grad(x, grad)
    return x_grad, w_grad


def _weight_grad(x, grad):
    batch_axes = tuple(range(x.ndim - 1))
    contract = ((batch_axes, batch_axes), ((), ()))
    if x.shape[-1] < grad.shape[-1]:
        return jax.lax.dot_general(x, grad, contract)
    return jax.lax.dot_general(grad, x, contract).T


matmul.defvjp(_matmul_fwd, _matmul_bwd, symbolic_zeros=True)


# ---- norms, positions, attention -----------------------------------------------------------------


def rms_norm(x: Vectors) -> Vectors:
    """Divide `x` by its root mean square, in float32. The caller applies the scale."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def rope_tables(positions: Positions, head_dim: int) -> RopeTables:
    """Compute the sine and cosine tables for `rope`. All layers use the same tables."""
    half = head_dim // 2
    period = 10_000.0 ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) / period
    return jnp.sin(angle), jnp.cos(angle)


def rope(x: Float[Array, "B T *N H"], tables: RopeTables) -> Float[Array, "B T *N H"]:
    """Apply rotary position embedding (Su et al. 2021).

    The layout is Gemma's: element i is paired with element i + H / 2.
    """
    head_axes = (1,) * (x.ndim - 3)
    sin, cos = (table.reshape(*table.shape[:2], *head_axes, -1) for table in tables)
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def attend(
    q: Queries,
    k: Keys,
    v: Float[Array, "B S K E"],
    mask: AttentionMask | None = None,
    cap: float = 0.0,
) -> Float[Array, "B T N E"]:
    """Compute grouped-query attention. Query head n reads key head n // G.

    Args:
      q: queries, already scaled.
      k: keys.
      v: values; their width E is usually H.
      mask: True where a query reads a key; None: every query reads every key.
      cap: soft cap of the logits, 0 for none.
    """
    batch, length, heads, width = q.shape
    kv_heads = k.shape[2]
    # Two measures for speed on a CPU: heads precede tokens, so no array of T x S numbers is
    # transposed; and the output of T x H numbers is divided by the softmax's sum, instead of the T
    # x S weights. Axis q below is (G, T) flattened.
    q = q.reshape(batch, length, kv_heads, -1, width)
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, width)
    logits = jnp.einsum("bkqh,bskh->bkqs", q, k, preferred_element_type=jnp.float32)
    logits = softcap(logits, cap)
    if mask is not None:
        # Add a bias instead of jnp.where, which would save the mask of every head for its gradient.
        bias = jnp.where(mask, 0, MASKED)[:, None, None]
        grouped = logits.reshape(batch, kv_heads, -1, *mask.shape[1:])
        logits = (grouped + bias).reshape(logits.shape)
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights, total = _exp_and_sum(logits - largest, v)
    out = jnp.einsum("bkqs,bskh->bkqh", weights, v, preferred_element_type=jnp.float32)
    out = (out / total).astype(v.dtype)
    return out.reshape(batch, heads, length, -1).swapaxes(1, 2)


@jax.custom_vjp
def _exp_and_sum(
    x: Float[Array, "*B S"], like: Array
) -> tuple[Float[Array, "*B S"], Float[Array, "*B 1"]]:
    """Compute exp(x) in the dtype of `like`, and its sum in float32.

    The gradient needs only the narrow array.
    """
    y = jnp.exp(x)
    return y.astype(like.dtype), y.sum(axis=-1, keepdims=True)


def _exp_and_sum_fwd(x, like):
    y, total = _exp_and_sum(x, like)
    return (y, total), y


def _exp_and_sum_bwd(y, grads):
    y_grad, total_grad = grads
    return y * (y_grad.astype(jnp.float32) + total_grad), None


_exp_and_sum.defvjp(_exp_and_sum_fwd, _exp_and_sum_bwd)


def softcap(x: AnyShape, cap: float) -> AnyShape:
    """Compute cap * tanh(x / cap), as in Gemma 2 (arXiv 2408.00118). Returns `x` if `cap` is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def sincos_embedding(
    value: AnyShape, width: int, min_period: float, max_period: float
) -> Float[Array, "*shape D"]:
    """Embed a scalar as sines and cosines with geometrically spaced periods.

    This is openpi's time embedding. Both `min_period` and `max_period` are among the periods.
    """
    if width % 2:
        raise ValueError(f"sincos_embedding: width {width} is odd")
    fraction = jnp.linspace(0.0, 1.0, width // 2, dtype=jnp.float32)
    period = min_period * (max_period / min_period) ** fraction
    angle = value[..., None].astype(jnp.float32) * (1.0 / period * 2 * jnp.pi)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


# ---- masks and positions of the prefix -----------------------------------------------------------


def text_mask(segment: TextInts, target: TextMask) -> Bool[Array, "B L L"]:
    """Compute the attention mask among text tokens.

    Attention is bidirectional in a prompt and causal in its targets. Tokens of different segments
    do not attend to each other. Example: one row with segments [1 1 1 2 2 0] and targets
    [. . T . T .]; x marks the keys that a query reads:

        query \\ key   1p 1p 1T 2p 2T 0
        1 prompt       x  x
        1 prompt       x  x
        1 target       x  x  x
        2 prompt                x
        2 target                x  x
        padding
    """
    same_segment = (segment[:, :, None] == segment[:, None, :]) & (segment[:, None, :] > 0)
    index = jnp.arange(segment.shape[1])
    causal = index[None, None, :] <= index[None, :, None]
    return same_segment & (~target[:, None, :] | causal)


def prefix_mask(
    image_token_mask: ImageMask,
    segment: TextInts,
    target: TextMask,
    image_attends_prompt: bool,
) -> Bool[Array, "B I+L I+L"]:
    """Compute the attention mask of the prefix (image tokens, then text).

    Image tokens read the present image tokens and, with `image_attends_prompt`, the prompts. Text
    tokens read the present image tokens and, by `text_mask`, their segment.
    """
    num_image = image_token_mask.shape[1]
    prompt = (segment > 0) & ~target
    image_to_text = prompt if image_attends_prompt else jnp.zeros_like(prompt)
    image_query = jnp.concatenate([image_token_mask, image_to_text], axis=1)
    image_queries = jnp.repeat(image_query[:, None], num_image, axis=1)
    text_to_image = jnp.repeat(image_token_mask[:, None], segment.shape[1], axis=1)
    text_queries = jnp.concatenate([text_to_image, text_mask(segment, target)], axis=2)
    return jnp.concatenate([image_queries, text_queries], axis=1)


def local_mask(
    mask: AttentionMask,
    positions: Positions,
    key_positions: Int[Array, "B S"],
    causal: QueryMask,
    window: int,
) -> AttentionMask:
    """Restrict the mask of a local layer to the last `window` positions, the query's own included.

    Only causal queries are restricted: the prefix of PaliGemma 2 attends to itself without a window
    in these layers too, as in the Hugging Face implementation.
    """
    within_window = key_positions[:, None, :] > positions[:, :, None] - window
    return mask & (within_window | ~causal[:, :, None])


def prefix_positions(image_token_mask: ImageMask, segment: TextInts) -> Int[Array, "B I+L"]:
    """Compute the positions of the prefix.

    Image tokens come first. Each segment starts at the first position after them. Image tokens
    outside `image_token_mask` take no position.
    """
    image_positions = jnp.cumsum(image_token_mask, axis=1) - 1
    num_image = image_token_mask.sum(axis=1, keepdims=True)
    index = jnp.arange(segment.shape[1])
    previous = jnp.pad(segment, ((0, 0), (1, 0)))[:, :-1]
    is_start = (segment != previous) | (index == 0)
    segment_start = jax.lax.cummax(jnp.where(is_start, index, 0), axis=1)
    text_positions = index - segment_start + num_image
    return jnp.concatenate([image_positions, text_positions], axis=1)
