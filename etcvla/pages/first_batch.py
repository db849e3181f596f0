"""Picture of a batch: what the model gets as input and what it has to predict.

Everything is decoded from the arrays that the model gets: texts from tokens, shapes from their
location tokens, the action chunk from its FAST tokens. So the picture shows what is trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from etcvla.data import prompts
from etcvla.etc.question_types import PATH, QUESTION_TYPES, answer_type, parse_question
from etcvla.models.vla import (
    VLAConfig,
    expand_image_mask,
    expert_key_mask,
    prefix_positions_and_mask,
)
from etcvla.pages import batch_panels
from etcvla.pages.shapes import Shape, shapes_in_text
from etcvla.train.stage import Stage

MAX_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Segment:
    """A segment of a row, decoded.

    Attributes:
      number: number of the segment in the row, from 1.
      prompt: text of the tokens that are not predicted.
      answer: text of the tokens that are predicted.
      is_action: the segment's prompt is the prompt of the row's action chunk.
      fast_tokens: FAST tokens of the chunk; empty if the segment has none.
    """

    number: int
    prompt: str
    answer: str
    is_action: bool
    fast_tokens: tuple[int, ...]


def draw_batch(batch: Mapping[str, np.ndarray], stage: Stage, title: str) -> np.ndarray:
    """Draw up to MAX_ROWS rows of a batch, at least one of each stream.

    Args:
      batch: arrays of a batch, with the batch axis first.
      stage: the stage that the batch belongs to.
      title: title of the picture.

    Returns:
      uint8[height, width, 3].
    """
    indices = choose_rows(batch, MAX_ROWS)
    rows = {name: np.asarray(value)[indices] for name, value in batch.items()}
    masks = jax.device_get(_attention_masks(stage.model.config, rows))
    image_token_mask, prefix_mask, expert_mask = masks
    num_slots = rows["images"].shape[1] + 1  # cameras and the attention mask
    if rows["action_segment"].any():
        num_slots += 1
    panels = []
    for i, index in enumerate(indices):
        row = {name: value[i] for name, value in rows.items()}
        segments = read_segments(row, stage)
        pictures = []
        for camera, image in enumerate(row["images"]):
            shapes = []
            if camera == 0:  # coordinates in texts are of the first camera
                for segment in segments:
                    color = batch_panels.segment_color(segment.number)
                    shapes += [(shape, color) for shape in segment_shapes(segment)]
            pictures.append(
                batch_panels.draw_camera(image, bool(row["image_mask"][camera]), shapes)
            )
        pictures.append(
            batch_panels.draw_attention(
                row, prefix_mask[i], expert_mask[i], image_token_mask.shape[1]
            )
        )
        if row["action_segment"]:
            pictures.append(batch_panels.draw_chunk(row, _fast_chunks(segments, stage)))
        panels.append(
            batch_panels.draw_panel(
                _heading(index, row, stage),
                pictures,
                num_slots,
                batch_panels.draw_tokens(row),
                _text_lines(segments),
            )
        )
    return np.asarray(batch_panels.draw_page(title, panels))


def choose_rows(batch: Mapping[str, np.ndarray], count: int) -> list[int]:
    """Return at most `count` row indices in ascending order, first one row of each stream."""
    streams = batch["stream"][:, 0].tolist()
    first_rows = [streams.index(stream) for stream in dict.fromkeys(streams)]
    other_rows = [row for row in range(len(streams)) if row not in first_rows]
    return sorted([*first_rows, *other_rows][:count])


def read_segments(row: Mapping[str, np.ndarray], stage: Stage) -> list[Segment]:
    """Decode the segments of one row, whose arrays have no batch axis."""
    tokenizer = stage.assets.tokenizer
    segments = []
    for number in range(1, int(row["segment"].max()) + 1):
        in_segment = row["segment"] == number
        prompt_tokens = row["tokens"][in_segment & ~row["target"]].tolist()
        answer_tokens = row["tokens"][in_segment & row["target"]].tolist()
        is_action = bool(number == row["action_segment"])
        fast_tokens = []
        if is_action:
            prompt_format = stage.config.data.prompt
            fast_tokens = prompts.read_action(tokenizer, answer_tokens, prompt=prompt_format)
        answer = tokenizer.decode(answer_tokens)
        if fast_tokens:
            numbers = " ".join(str(token) for token in fast_tokens)
            answer = f"{len(fast_tokens)} FAST tokens: {numbers}"
        prompt = tokenizer.decode(prompt_tokens).strip()
        segments.append(Segment(number, prompt, answer, is_action, tuple(fast_tokens)))
    return segments


def segment_shapes(segment: Segment) -> list[Shape]:
    """Return the shapes in a segment's prompt (dashed) and answer.

    The shapes of an answer are paths if the prompt is a question for a path.
    """
    if segment.is_action:
        return []
    asks_for_path = False
    for name in QUESTION_TYPES:
        if answer_type(name) == PATH and parse_question(name, segment.prompt) is not None:
            asks_for_path = True
    prompt_shapes = shapes_in_text(segment.prompt, dashed=True)
    return prompt_shapes + shapes_in_text(segment.answer, are_paths=asks_for_path)


def _attention_masks(
    config: VLAConfig, batch: Mapping[str, np.ndarray]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the attention masks of a batch, with I image tokens and L text tokens.

    Returns:
      bool[B, I]: image tokens of cameras that are present;
      bool[B, I + L, I + L]: keys that each query of the prefix attends to;
      bool[B, I + L]: keys of the prefix that the action expert attends to.
    """

    def _masks(arrays):
        image_token_mask = expand_image_mask(config, arrays["image_mask"])
        _, mask = prefix_positions_and_mask(config, image_token_mask, arrays)
        if isinstance(mask, tuple):
            mask = mask[0]
        return image_token_mask, mask, expert_key_mask(image_token_mask, arrays)

    names = ("image_mask", "segment", "target", "action_segment")
    return jax.jit(_masks)({name: batch[name] for name in names})


def _fast_chunks(segments: list[Segment], stage: Stage) -> list[np.ndarray]:
    """Decode the action chunks of all segments with FAST tokens, each as float[P, A]."""
    chunks = []
    for segment in segments:
        if segment.fast_tokens:
            decoded, _ = stage.assets.fast.decode_batch([list(segment.fast_tokens)])
            chunks.append(decoded[0])
    return chunks


def _heading(index: int, row: Mapping[str, np.ndarray], stage: Stage) -> str:
    """Return a row's stream and how many tokens, targets and action values it contains."""
    stream = stage.plan.streams[int(row["stream"][0])].name
    num_tokens = int((row["segment"] > 0).sum())
    num_targets = int(row["target"].sum())
    fields = [
        f"row {index}",
        stream,
        f"{num_tokens} of {len(row['tokens'])} tokens, "
        f"{num_targets} of {stage.config.data.max_targets} targets",
    ]
    if row["action_segment"]:
        horizon, width = row["actions"].shape
        num_steps = int(row["action_mask"].any(axis=1).sum())
        num_dims = int(row["action_mask"].any(axis=0).sum())
        state = " ".join(f"{value:.2f}" for value in row["state"])
        fields.append(f"actions {num_steps} of {horizon} steps x {num_dims} of {width}")
        fields.append(f"state {state}")
    return "  ·  ".join(fields)


def _text_lines(segments: list[Segment]) -> list[tuple[str, str]]:
    """Return (text, colour) of the lines beside the pictures: prompts and answers."""
    lines = []
    for segment in segments:
        prefix = "[act] " if segment.is_action else ""
        prompt = f"{segment.number}  {prefix}{batch_panels.shorten(segment.prompt)}"
        for line in batch_panels.wrap(prompt, indent="    "):
            lines.append((line, batch_panels.INK))
        missing_answer = "(no text)" if segment.is_action else "(no answer)"
        answer = batch_panels.shorten(segment.answer) or missing_answer
        for line in batch_panels.wrap(f"  » {answer}", indent="      "):
            lines.append((line, batch_panels.segment_color(segment.number)))
    return lines
