"""Picture of a batch: what the model gets as input and what it has to predict.

Everything is decoded from the arrays that the model gets: texts from tokens, shapes from their
location tokens, the action chunk from its FAST tokens. So the picture shows what is trained on.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from etcvla.data import prompts
from etcvla.etc.question_types import PATH, QUESTION_TYPES, answer_type, parse_question
from etcvla.models import ops
from etcvla.models.vla import VLAConfig, expand_image_mask, expert_key_mask
from etcvla.pages import batch_panels, palette
from etcvla.pages.shapes import Shape, shapes_in_text
from etcvla.train.stage import Stage

MAX_ROWS = 8


@dataclasses.dataclass(frozen=True)
class DecodedSegment:
    """A segment of a row, decoded.

    Attributes:
      number: number of the segment in the row, from 1.
      prompt: text of the tokens that are not predicted.
      answer: text of the tokens that are predicted.
      is_action: the segment's prompt is the prompt of an action chunk.
      fast_chunk: float[P, A] decoded from the segment's FAST tokens, if it has any.
    """

    number: int
    prompt: str
    answer: str
    is_action: bool = False
    fast_chunk: np.ndarray | None = None


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
    attention, expert_attention = jax.device_get(_attention_masks(stage.model.config, rows))
    panels = []
    for i, index in enumerate(indices):
        row = {name: value[i] for name, value in rows.items()}
        segments = read_segments(row, stage)
        shapes = []
        fast_chunk = None
        for segment in segments:
            color = batch_panels.segment_color(segment.number)
            shapes += [(shape, color) for shape in segment_shapes(segment)]
            if segment.number == row["action_segment"][0]:
                fast_chunk = segment.fast_chunk
        panels.append(
            batch_panels.Panel(
                heading=_heading(index, row, stage),
                row=row,
                shapes=shapes,
                attention=attention[i],
                expert_attention=expert_attention[i],
                fast_chunk=fast_chunk,
                lines=_text_lines(segments),
            )
        )
    return batch_panels.draw_page(title, panels)


def choose_rows(batch: Mapping[str, np.ndarray], count: int) -> list[int]:
    """Return at most `count` row indices in ascending order, first one row of each stream."""
    streams = batch["stream"][:, 0]
    first_rows = np.sort(np.unique(streams, return_index=True)[1])
    other_rows = np.setdiff1d(np.arange(len(streams)), first_rows)
    return sorted(np.concatenate([first_rows, other_rows])[:count].tolist())


def read_segments(row: Mapping[str, np.ndarray], stage: Stage) -> list[DecodedSegment]:
    """Decode the segments of one row, whose arrays have no batch axis."""
    tokenizer = stage.assets.tokenizer
    segments = []
    for number in range(1, int(row["segment"].max()) + 1):
        in_segment = row["segment"] == number
        prompt = tokenizer.decode(row["tokens"][in_segment & ~row["target"]].tolist()).strip()
        answer_tokens = row["tokens"][in_segment & row["target"]].tolist()
        answer = tokenizer.decode(answer_tokens)
        is_action = number in row["action_segment"]
        fast_tokens = []
        if is_action:
            prompt_format = stage.config.data.prompt
            fast_tokens = prompts.read_action(tokenizer, answer_tokens, prompt=prompt_format)
        fast_chunk = None
        if fast_tokens:
            answer = f"{len(fast_tokens)} FAST tokens: {' '.join(map(str, fast_tokens))}"
            fast_chunk = stage.assets.fast.decode_batch([fast_tokens])[0][0]
        segments.append(DecodedSegment(number, prompt, answer, is_action, fast_chunk))
    return segments


def segment_shapes(segment: DecodedSegment) -> list[Shape]:
    """Return the shapes in a segment's prompt (dashed) and answer.

    The shapes of an answer are paths if the prompt is a question for a path.
    """
    if segment.is_action:
        return []
    path_types = [name for name in QUESTION_TYPES if answer_type(name) == PATH]
    are_paths = any(parse_question(name, segment.prompt) is not None for name in path_types)
    prompt_shapes = shapes_in_text(segment.prompt, dashed=True)
    return prompt_shapes + shapes_in_text(segment.answer, are_paths=are_paths)


def _attention_masks(
    config: VLAConfig, batch: Mapping[str, np.ndarray]
) -> tuple[jax.Array, jax.Array]:
    """Compute the attention masks of a batch, with I image tokens and L text tokens.

    Returns:
      bool[B, I + L, I + L]: keys that each query of the prefix attends to;
      bool[B, K, I + L]: keys of the prefix that the action expert attends to.
    """
    image_mask = expand_image_mask(config, batch["image_mask"])
    attends = config.image_attends_prompt
    prefix_mask = ops.prefix_mask(image_mask, batch["segment"], batch["target"], attends)
    return prefix_mask, expert_key_mask(image_mask, batch)


def _heading(index: int, row: Mapping[str, np.ndarray], stage: Stage) -> str:
    """Return a row's stream and how many tokens, targets and action values it contains."""
    fields = [
        f"row {index}",
        stage.plan.streams[int(row["stream"][0])].name,
        f"{(row['segment'] > 0).sum()} of {len(row['tokens'])} tokens",
        f"{row['target'].sum()} of {stage.config.data.max_targets} targets",
    ]
    num_chunks = np.count_nonzero(row["action_segment"])
    if num_chunks:
        mask = row["action_mask"][0]
        num_steps = mask.any(axis=1).sum()
        num_dims = mask.any(axis=0).sum()
        state = " ".join(f"{value:.2f}" for value in row["state"])
        fields.append(f"{num_steps} actions of {num_dims} dimensions")
        if num_chunks > 1:
            fields.append(f"the first of {num_chunks} chunks")
        fields.append(f"state {state}")
    return "  ·  ".join(fields)


def _text_lines(segments: Sequence[DecodedSegment]) -> list[tuple[str, str]]:
    """Return (text, colour) of the lines beside the pictures: prompts and answers."""
    lines = []
    for segment in segments:
        prefix = "[act] " if segment.is_action else ""
        prompt = f"{segment.number}  {prefix}{batch_panels.shorten(segment.prompt)}"
        answer = f"  » {batch_panels.shorten(segment.answer) or '(no answer)'}"
        color = batch_panels.segment_color(segment.number)
        for text, text_color in ((prompt, palette.INK), (answer, color)):
            wrapped = textwrap.wrap(text, batch_panels.TEXT_COLUMNS, subsequent_indent="      ")
            lines += [(line, text_color) for line in wrapped]
    return lines
