"""The sizes and the content of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from etcvla.data import prompts
from etcvla.loss_forms import LOSS_FORMS
from etcvla.names import lookup


@dataclasses.dataclass(frozen=True)
class RowSizes:
    """The fixed sizes of a row, as in `etcvla.batch`."""

    num_cameras: int  # C
    image_size: int  # H = W, pixels
    text_len: int  # L
    max_targets: int  # most target tokens in a row
    state_dim: int  # S
    horizon: int  # P
    action_dim: int  # A
    actions_per_row: int = 1  # K


@dataclasses.dataclass(frozen=True)
class RowOptions:
    """What a row contains.

    Attributes:
      prompt: the action prompt, a name of `prompts.FORMATS`. A format with subtasks adds the
        segment that asks for the subtask.
      use_fast: add the chunk's FAST tokens as targets of the action segment.
      extra_segment_weights: relative weight of each kind when extra segments are drawn from the
        frame's other ETC items.
      mask_padding: exclude the padded action dimensions and the steps past the episode's end from
        the loss. If False, they are trained as zeros and as the repeated last action.
      loss_form: how the losses of tokens and values are weighted, a name of `LOSS_FORMS`.
    """

    prompt: str
    use_fast: bool
    extra_segment_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mask_padding: bool = True
    loss_form: str = "share"

    def __post_init__(self):
        prompts.find_format(self.prompt)
        lookup(LOSS_FORMS, self.loss_form, "loss.form")

    @property
    def format(self) -> prompts.Format:
        """The format of the action prompt."""
        return prompts.find_format(self.prompt)
