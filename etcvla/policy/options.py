"""Options of a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etcvla import schedule
from etcvla.errors import UserError

HEADS = ("flow", "fast")


@dataclasses.dataclass(frozen=True)
class PolicyOptions:
    """How a policy runs its model.

    Attributes:
      head: "flow" acts with the action expert, "fast" with FAST tokens. A policy with None only
        answers questions.
      num_steps: Euler steps of the action expert.
      max_fast_tokens: maximum number of FAST tokens of a chunk.
      subtask_question: question template with the field {instruction}, such as "the robot should
        {instruction}. what should it do now?". The policy answers the question first and acts on
        the answer: as the subtask if the checkpoint's action prompt has a subtask field, else in
        place of the instruction. An empty answer leaves the instruction unchanged. With None, the
        policy asks for a subtask only if the action prompt has a subtask field. Both passes share
        the encoded images as far as the model's attention mask allows (`decode.ImageCache`).
      text_len: tokens to which every prompt is padded, so that one shape is compiled; 0 pads to
        the next multiple of 16.
      keep_image_cache: keep the encoded images until other images arrive. If the same images
        arrive again with another prompt or state, the policy reuses them. The actions are the
        same as without the cache, up to rounding.
    """

    head: str | None = "flow"
    num_steps: int = 10
    max_fast_tokens: int = 256
    subtask_question: str | None = None
    text_len: int = 0
    keep_image_cache: bool = False

    def __post_init__(self):
        if self.head is not None and self.head not in HEADS:
            raise UserError(f"head {self.head!r} is not one of {', '.join(HEADS)}")
        question = self.subtask_question
        if question is not None and "{instruction}" not in question:
            raise UserError(f"subtask_question {question!r} has no field {{instruction}}; add it")


def trained_head(loss: Mapping[str, Any]) -> str | None:
    """Return the head that a stage with these loss weights trains: flow, else fast, else None."""
    return next((head for head in HEADS if schedule.is_nonzero(loss[head])), None)
