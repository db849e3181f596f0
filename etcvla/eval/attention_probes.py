"""Features and attention of a model on probes: frames in which the place of an object is known.

Features and attention are read with flax's `sow`: `models/gemma.py` and `models/siglip.py` call
`self.sow("intermediates", ...)`, which stores a tensor of the forward pass if the caller of
`model.apply` asks for it with `mutable=["intermediates"]`, and does nothing otherwise. So the
numbers are those of the pass that answers or acts, and training and serving pay nothing.

What is sown, for every layer (a leading axis of the layers' scan):

- gemma `streams`: hidden states [B, T, D] after the layer, of the prefix (stream 0: image tokens
  of all cameras, then text) and of the action expert (stream 1).
- gemma `attention_inputs_<stream>`: queries, keys and mask of the attention of a stream.
- siglip `tokens`: hidden states of the image tokens.

Attention weights [B, N, T, S] of all layers would need too much memory. Instead, the values of the
attention are replaced by indicators, 1 for the key tokens of interest and 0 for others; the output
is then the sum of the weights of these tokens, computed by the model's own attention function.

Axes: B batch, N probes, S key length, T query length, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from etcvla.data import prompts
from etcvla.data.stage_dataset import ANY_KIND, StageDataset
from etcvla.errors import UserError
from etcvla.etc.question_types import BOX, parse_question
from etcvla.etc.score import parse_answer
from etcvla.eval.vqa import spread_evenly, spread_frames
from etcvla.models import ops
from etcvla.models.vla import VLA, Batch, Params
from etcvla.policy import Policy

BATCH = 32
QUESTION_TYPE = "locate_box"  # the question names an object, and the answer is its box
# Features, means over tokens: the image tower's tokens, the language model's image tokens and the
# language model's tokens of the question.
FEATURES = ("vision", "image", "text")
# Tokens whose attention is measured: those of the question, the last one of the question (which
# predicts the answer), and the noisy actions of the expert.
READERS = ("question", "answer", "action")


@dataclasses.dataclass(frozen=True)
class Probe:
    """A frame with an object whose box in the first camera is known."""

    question: str  # names the object
    box: np.ndarray  # float32[4], (ymin, xmin, ymax, xmax) in [0, 1]
    images: tuple[np.ndarray, ...]  # uint8[H, W, 3] per camera
    instruction: str
    state: np.ndarray  # float32[S]
    in_instruction: bool  # whether the instruction names the object


@dataclasses.dataclass(frozen=True)
class Activations:
    """Features and attention of a model on N probes.

    Attributes:
      features: name of FEATURES -> float32[layers, N, D].
      attention: name of READERS -> float32[layers, N, 3]: the share of attention on the patches
        under the object's box in the first camera, on those under the box of the previous probe,
        and on the whole first camera. "action" only if the model has an action expert.
    """

    features: Mapping[str, np.ndarray]
    attention: Mapping[str, np.ndarray]


def draw_probes(dataset: StageDataset, count: int) -> list[Probe]:
    """Return up to `count` probes, spread evenly over the split.

    Raises UserError if the dataset has no questions of QUESTION_TYPE.
    """
    probes = []
    features = ("language_instruction", "observation/state")
    for _, frame, images in spread_frames(dataset, ANY_KIND, 4 * count, features):
        items = [item for item in dataset.items(frame) if item.question_type == QUESTION_TYPE]
        if not items:
            continue
        item = items[0]
        instruction = frame["language_instruction"]
        name = (parse_question(QUESTION_TYPE, item.question) or {}).get("object", "")
        probe = Probe(
            item.question,
            box=parse_answer(BOX, item.answer)[0],
            images=images,
            instruction=instruction,
            state=frame["observation/state"],
            in_instruction=bool(name) and name in instruction,
        )
        probes.append(probe)
    if not probes:
        raise UserError(
            f"{dataset.dataset.directory}: no question of the type {QUESTION_TYPE}, which "
            "attention probes need; use another dataset, or --probes=0"
        )
    return spread_evenly(probes, count)


def record_activations(policy: Policy, probes: Sequence[Probe], *, seed: int = 0) -> Activations:
    """Run a policy's model on the probes' questions and, if it acts by flow, instructions.

    Args:
      seed: of the noise that replaces the actions.
    """
    model = VLA(policy.config)
    coverage = np.stack(
        [patch_coverage(probe.box, policy.config.siglip.tokens) for probe in probes]
    )
    # Boxes of other probes are a control: a model that attends to the middle of every image also
    # attends to them.
    indicators = np.stack([coverage, np.roll(coverage, 1, axis=0), np.ones_like(coverage)], axis=-1)
    shape = (len(probes), 1, policy.config.horizon, policy.config.action_dim)
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    acts = policy.assets.action_spec and policy.head == "flow"

    def _record(rows: np.ndarray) -> dict[str, jax.Array]:
        """Return the features and the attention of some probes."""
        batch_probes = [probes[i] for i in rows]
        images = [probe.images for probe in batch_probes]
        questions = [
            prompts.question(policy.assets.tokenizer, probe.question) for probe in batch_probes
        ]
        batch = policy.model_batch(images, questions)
        recorded = _record_questions(model, policy.params, batch, indicators[rows])
        if acts:
            states = [probe.state for probe in batch_probes]
            instructions = [probe.instruction for probe in batch_probes]
            segments = policy.action_prompts(instructions, states)
            batch = policy.model_batch(images, segments, states)
            recorded |= _record_actions(model, policy.params, batch, indicators[rows], noise[rows])
        return jax.device_get(recorded)

    # The last batch repeats probes up to the batch size, so that one shape is compiled.
    starts = range(0, len(probes), BATCH)
    batches = [_record(np.arange(start, start + BATCH) % len(probes)) for start in starts]
    recorded = {}
    for name in batches[0]:
        values = np.concatenate([batch[name] for batch in batches], axis=1)
        recorded[name] = values[:, : len(probes)]
    return Activations(
        features={name: recorded[name] for name in FEATURES},
        attention={name: recorded[name] for name in READERS if name in recorded},
    )


@functools.partial(jax.jit, static_argnums=0)
def _record_questions(
    model: VLA, params: Params, batch: Batch, indicators: jax.Array
) -> dict[str, jax.Array]:
    """Return the features and the attention of question prompts.

    Args:
      indicators: float32[B, I, 3] of the first camera's image tokens, see `Activations`.

    Returns:
      Features [layers, B, D] by FEATURES, and attention [layers, B, 3] of "question" and "answer".
    """
    _, sown = model.apply({"params": params}, batch, None, None, None, mutable=["intermediates"])
    layers = sown["intermediates"]["llm"]["layers"]
    (streams,) = layers["streams"]
    hidden = streams[0]
    tokens = model.config.siglip.tokens
    text = batch["segment"] > 0
    image_columns = batch["image_mask"].shape[1] * tokens
    is_question = jnp.pad(text, ((0, 0), (image_columns, 0)))
    last_column = image_columns + text.sum(axis=1, keepdims=True) - 1
    is_last = jnp.arange(is_question.shape[1]) == last_column
    text_sum = (hidden * is_question[..., None]).sum(axis=2)
    return {
        "vision": _first_camera_tokens(sown, len(text)).mean(axis=2),
        "image": hidden[:, :, :tokens].mean(axis=2),
        "text": text_sum / is_question.sum(axis=1)[:, None],
        "question": _attention(model, layers, 0, is_question, indicators),
        "answer": _attention(model, layers, 0, is_last, indicators),
    }


@functools.partial(jax.jit, static_argnums=0)
def _record_actions(
    model: VLA, params: Params, batch: Batch, indicators: jax.Array, noise: jax.Array
) -> dict[str, jax.Array]:
    """Return the attention [layers, B, 3] of the action expert's tokens as "action".

    Args:
      indicators: as of `_record_questions`.
      noise: float32[B, 1, P, A], in place of the actions. At time 1 it is all of the input, so the
        expert knows only what it reads from the observation.
    """
    time = jnp.ones(noise.shape[:2])
    _, sown = model.apply({"params": params}, batch, None, noise, time, mutable=["intermediates"])
    layers = sown["intermediates"]["llm"]["layers"]
    (streams,) = layers["streams"]
    columns = streams[1].shape[2]
    is_action = jnp.arange(columns) >= columns - noise.shape[2]  # a state token may come first
    is_action = jnp.broadcast_to(is_action, (len(indicators), columns))
    return {"action": _attention(model, layers, 1, is_action, indicators)}


def _first_camera_tokens(sown: Mapping, batch_size: int) -> jax.Array:
    """Return the image tower's tokens [layers, B, I, D] of the first camera."""
    (tokens,) = sown["intermediates"]["img"]["Transformer"]["encoderblock"]["tokens"]
    tokens = tokens.reshape(len(tokens), batch_size, -1, *tokens.shape[2:])
    return tokens[:, :, 0]


def _attention(
    model: VLA, layers: Mapping, stream: int, queries: jax.Array, indicators: jax.Array
) -> jax.Array:
    """Return the attention [layers, B, 3] on the indicated tokens.

    It is a mean over heads and over the queries of interest.

    Args:
      queries: bool[B, T], the queries of interest.
      indicators: float32[B, I, 3] of the first I keys; other keys have 0.
    """

    def _attend_layer(q: jax.Array, keys: jax.Array, mask: jax.Array) -> jax.Array:
        padding = ((0, 0), (0, keys.shape[1] - indicators.shape[1]), (0, 0))
        values = jnp.pad(indicators, padding)[:, :, None]
        values = jnp.broadcast_to(values, (*keys.shape[:3], 3)).astype(jnp.float32)
        attended = ops.attend(q, keys, values, mask, model.config.vlm.attn_softcap)
        return attended.mean(axis=2)

    (inputs,) = layers["attn"][f"attention_inputs_{stream}"]
    attended = jax.vmap(_attend_layer)(*inputs)
    total = (attended * queries[..., None]).sum(axis=2)
    return total / queries.sum(axis=1)[:, None]


def patch_coverage(box: np.ndarray, tokens: int) -> np.ndarray:
    """Return float32[tokens]: the share of each patch of a square image that is under a box.

    Args:
      box: (ymin, xmin, ymax, xmax) in [0, 1].
    """
    side = round(tokens**0.5)
    low = np.arange(side) / side
    high = (np.arange(side) + 1) / side

    def _overlap(start: float, stop: float) -> np.ndarray:
        return np.clip(np.minimum(high, stop) - np.maximum(low, start), 0, None) * side

    return np.outer(_overlap(box[0], box[2]), _overlap(box[1], box[3])).ravel().astype(np.float32)
