"""Pure maths of the model: norms, rotary positions, masks, attention.

Axes: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K query heads a key head, H head
width, D model width, C cameras, I image tokens, L text length, R noise samples, P action horizon, A action width.

Everything here computes in float32 where rounding matters (norms, softmax, rotations) and returns its input's dtype.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

RopeTables = tuple[Float[Array, "b t d/2"], Float[Array, "b t d/2"]]

BATCH_AXES = ("data", "fsdp")  # axes of the mesh over which rows are split
MASKED = (
    -2.3819763e38
)  # Gemma's: finite, so that a row with every key masked gives numbers instead of NaN


def shard_batch(x: Float[Array, "b *t d"], last: str | None = None) -> Float[Array, "b *t d"]:
    """x, said to have its rows split over the mesh that the step runs on, and its last axis over the mesh's `last`.

    Said of embedded tokens, of what a layer hands on and of logits. What lies between follows; with nothing said, XLA
    may gather rows instead of parameters. Without a mesh (acting, one device) nothing is said.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    axes = (BATCH_AXES, *(None,) * (x.ndim - 2), last)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes[: x.ndim]))


def mesh_size(axis: str) -> int:
    """Devices along an axis of the mesh that the step runs on; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1)


@jax.custom_vjp
def scale_gradient(x: Float[Array, "*b"], share: Float[Array, ""]) -> Float[Array, "*b"]:
    """x, through which `share` of the gradient flows."""
    return x


scale_gradient.defvjp(
    lambda x, share: (x, share),
    lambda share, grad: ((grad * share).astype(grad.dtype), jnp.zeros_like(share)),
)


@jax.custom_vjp
def matmul(x: Float[Array, "*b d"], w: Float[Array, "d f"]) -> Float[Array, "*b f"]:
    """x @ w, whose weight gradient has the narrower of its two factors on the left.

    XLA transposes the left one on a CPU, together with what makes it. JAX puts the output's gradient there, which in an
    MLP is the wide one and made of many arrays: half of the MLP's time goes into that.
    """
    return x @ w


def _matmul_fwd(x, w):
    # Only what a wanted gradient needs is kept: a frozen weight's is not computed.
    return x.value @ w.value, (x.value if w.perturbed else None, w.value if x.perturbed else None)


def _matmul_bwd(saved, grad):
    x, w = saved
    return None if w is None else grad @ w.T, None if x is None else _weight_grad(x, grad)


def _weight_grad(x, grad):
    rows = tuple(range(x.ndim - 1))
    left, right = (x, grad) if x.shape[-1] < grad.shape[-1] else (grad, x)
    product = jax.lax.dot_general(left, right, ((rows, rows), ((), ())))
    return product if left is x else product.T


matmul.defvjp(_matmul_fwd, _matmul_bwd, symbolic_zeros=True)


def rms_norm(x: Float[Array, "*b d"], eps: float = 1e-6) -> Float[Array, "*b d"]:
    """x over its root mean square, in float32, unscaled: scales differ between plain and adaptive norms."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def rope_tables(positions: Int[Array, "b t"], width: int, base: float = 10_000.0) -> RopeTables:
    """Sine and cosine by which `rope` turns heads of `width`; the same in every layer."""
    half = width // 2
    angle = positions[..., None].astype(jnp.float32) / base ** (
        jnp.arange(half, dtype=jnp.float32) / half
    )
    return jnp.sin(angle), jnp.cos(angle)


def rope(x: Float[Array, "b t *h d"], turn: RopeTables) -> Float[Array, "b t *h d"]:
    """Rotary position embedding, half-split layout: element i is paired with i + H / 2 (Su et al. 2021, as Gemma)."""
    sin, cos = (part.reshape(*part.shape[:2], *(1,) * (x.ndim - 3), -1) for part in turn)
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def attend(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k e"],
    mask: Bool[Array, "b t s"] | None = None,
    cap: float = 0.0,
) -> Float[Array, "b t n e"]:
    """Grouped-query attention; `q` comes scaled. Query head n reads key head n // G.

    Args:
      mask: who sees whom; None: every query sees every key.
      cap: soft cap of the logits, 0 for none.
    """
    batch, length, heads, width = q.shape
    kv_heads = k.shape[2]
    # Heads stand before tokens, so that no product of T x S numbers has to be transposed; and it is the sums of T x H
    # that are divided, not the weights. Both tell on a CPU.
    q = (
        q.reshape(batch, length, kv_heads, -1, width)
        .transpose(0, 2, 3, 1, 4)
        .reshape(batch, kv_heads, -1, width)
    )
    logits = softcap(jnp.einsum("bkqh,bskh->bkqs", q, k, preferred_element_type=jnp.float32), cap)
    if (
        mask is not None
    ):  # added, not chosen: a choice would be kept, head by head, for its gradient
        hidden = jnp.where(mask, 0, MASKED)[:, None, None]
        logits = (logits.reshape(batch, kv_heads, -1, *mask.shape[1:]) + hidden).reshape(
            logits.shape
        )
    weights, total = _exponents(
        logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)), v
    )
    out = jnp.einsum("bkqs,bskh->bkqh", weights, v, preferred_element_type=jnp.float32)
    out = (out / total).astype(v.dtype)
    return out.reshape(batch, heads, length, -1).swapaxes(1, 2)


@jax.custom_vjp
def _exponents(
    x: Float[Array, "*b s"], like: Array
) -> tuple[Float[Array, "*b s"], Float[Array, "*b 1"]]:
    """exp(x) in the dtype of `like`, and its float32 sums; what is kept for the gradient is narrow too."""
    y = jnp.exp(x)
    return y.astype(like.dtype), y.sum(axis=-1, keepdims=True)


def _exponents_fwd(x, like):
    y, total = _exponents(x, like)
    return (y, total), y


_exponents.defvjp(
    _exponents_fwd, lambda y, grads: (y * (grads[0].astype(jnp.float32) + grads[1]), None)
)


def softcap(x: Float[Array, "*b"], cap: float) -> Float[Array, "*b"]:
    """x, bent into (-cap, cap) by cap * tanh(x / cap) as in Gemma 2 (arXiv 2408.00118); unchanged where cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def text_mask(segment: Int[Array, "b l"], target: Bool[Array, "b l"]) -> Bool[Array, "b l l"]:
    """Who sees whom among text tokens: prompts both ways, targets causally, segments not at all.

    Example: one row with segments [1 1 1 2 2 0] and targets [. . T . T .]:

        query \\ key   1p 1p 1T 2p 2T 0
        1 prompt       x  x
        1 prompt       x  x
        1 target       x  x  x
        2 prompt                x
        2 target                x  x
        padding
    """
    same = (segment[:, :, None] == segment[:, None, :]) & (segment[:, None, :] > 0)
    index = jnp.arange(segment.shape[1])
    return same & (~target[:, None, :] | (index[None, None, :] <= index[None, :, None]))


def prefix_mask(
    image_mask: Bool[Array, "b i"],
    segment: Int[Array, "b l"],
    target: Bool[Array, "b l"],
    image_attends_prompt: bool,
) -> Bool[Array, "b i+l i+l"]:
    """The whole prefix: images see images (and prompts, if asked); a text token sees the images and its segment."""
    batch, num_image = image_mask.shape
    prompt = (segment > 0) & ~target
    to_text = prompt if image_attends_prompt else jnp.zeros_like(prompt)
    image_rows = jnp.concatenate([image_mask, to_text], axis=1)
    image_rows = jnp.broadcast_to(image_rows[:, None], (batch, num_image, image_rows.shape[1]))
    seen = jnp.broadcast_to(image_mask[:, None], (batch, segment.shape[1], num_image))
    return jnp.concatenate(
        [image_rows, jnp.concatenate([seen, text_mask(segment, target)], axis=2)], axis=1
    )


def local_mask(
    mask: Bool[Array, "b t s"],
    positions: Int[Array, "b t"],
    key_positions: Int[Array, "b s"],
    causal: Bool[Array, "b t"],
    window: int,
) -> Bool[Array, "b t s"]:
    """The mask of layers that look back `window` positions, the query's own included.

    Only causal queries do: PaliGemma 2's prefix sees itself whole in these layers too (as Hugging Face has it).
    """
    near = key_positions[:, None, :] > positions[:, :, None] - window
    return mask & (near | ~causal[:, :, None])


def prefix_positions(
    image_mask: Bool[Array, "b i"], segment: Int[Array, "b l"]
) -> Int[Array, "b i+l"]:
    """Positions that restart after the images for every segment.

    Only image tokens in `image_mask` take one; a segment's first token stands right after the last of them.
    """
    image = jnp.cumsum(image_mask, axis=1) - 1
    index = jnp.arange(segment.shape[1])
    starts = (segment != jnp.pad(segment, ((0, 0), (1, 0)))[:, :-1]) | (index == 0)
    first = jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    return jnp.concatenate([image, index - first + image_mask.sum(axis=1, keepdims=True)], axis=1)


def sincos_embedding(
    value: Float[Array, "*b"], width: int, min_period: float, max_period: float
) -> Float[Array, "*b d"]:
    """Sine-cosine features of a scalar, periods geometric from min to max, both included (openpi's time embedding)."""
    if width % 2:
        raise ValueError(f"sincos width must be even, got {width}")
    period = min_period * (max_period / min_period) ** jnp.linspace(
        0.0, 1.0, width // 2, dtype=jnp.float32
    )
    angle = value[..., None].astype(jnp.float32) * (1.0 / period * 2 * jnp.pi)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
