"""Choose the segments of a row, and pack their text into it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etcvla.data import prompts
from etcvla.data.assets import Assets
from etcvla.data.row_options import RowOptions
from etcvla.data.stage_dataset import ANY_KIND
from etcvla.errors import UserError
from etcvla.etc.items import Item

Row = dict[str, np.ndarray]  # the fields of `etcvla.batch.SCHEMA`, without the batch axis


class SegmentChooser:
    """Choose the segments of a row: the main segment, then extra segments of the same frame."""

    def __init__(self, assets: Assets, options: RowOptions):
        self.tokenizer = assets.tokenizer
        self.fast = assets.fast if options.use_fast else None
        self.prompt = options.prompt
        self.has_state = options.format.has_state
        self.kind_weights = options.extra_segment_weights

    def action(
        self, task: str, subtask: str | None, state: np.ndarray, chunk: np.ndarray
    ) -> list[prompts.Segment]:
        """Return the action segment and, if the subtask is known, the segment that asks for it.

        Args:
          state: normalised, float32[S].
          chunk: normalised, float32[P, A].
        """
        prompt_state = state if self.has_state else None
        action = prompts.action(
            self.tokenizer,
            task,
            prompt=self.prompt,
            state=prompt_state,
            subtask=subtask or task,
            fast=self.fast.encode(chunk) if self.fast else None,
        )
        if not subtask:
            return [action]
        question = prompts.subtask(
            self.tokenizer, task, prompt=self.prompt, state=prompt_state, answer=subtask
        )
        return [action, question]

    def question(self, items: list[Item], kind: str, rng: np.random.Generator) -> prompts.Segment:
        """Draw an item of a kind, remove it from `items`, and return its segment."""
        matching = [i for i, item in enumerate(items) if kind in (ANY_KIND, item.kind)]
        return self._segment(items.pop(matching[rng.integers(len(matching))]))

    def extra(
        self, items: Sequence[Item], count: int, rng: np.random.Generator
    ) -> list[prompts.Segment]:
        """Draw up to `count` different items by their kinds' weights; return their segments."""
        weights = np.array([self.kind_weights.get(item.kind, 0.0) for item in items])
        count = min(count, np.count_nonzero(weights))
        if not count:
            return []
        chosen = rng.choice(len(items), count, replace=False, p=weights / weights.sum())
        return [self._segment(items[i]) for i in chosen]

    def _segment(self, item: Item) -> prompts.Segment:
        return prompts.question(self.tokenizer, item.question, item.answer)


def pack_segments(
    row: Row, segments: Sequence[prompts.Segment], *, max_targets: int, loss_mean: str
) -> int:
    """Write segments one after another into a row; leave out extra segments that do not fit.

    Args:
      row: an empty row.
      max_targets: most target tokens in a row.
      loss_mean: a name of `row_options.LOSS_MEANS`.

    Returns: the number of tokens written.

    Raises UserError if the main segment, the first, does not fit.
    """
    text_len = len(row["tokens"])
    length = 0
    num_targets = 0
    for number, segment in enumerate(segments, start=1):
        stop = length + len(segment)
        segment_targets = len(segment.target)
        if stop > text_len or num_targets + segment_targets > max_targets:
            if number > 1:
                continue
            raise UserError(
                f"a segment of {len(segment)} tokens, {segment_targets} of them targets, does not "
                f"fit data.text_len {text_len} and data.max_targets {max_targets}"
            )
        target_start = stop - segment_targets
        row["tokens"][length:stop] = segment.prompt + segment.target
        row["segment"][length:stop] = number
        row["target"][target_start:stop] = True
        if segment_targets:
            weight = 1 / segment_targets if loss_mean == "segment" else 1
            row["weight"][target_start:stop] = weight
        length = stop
        num_targets += segment_targets
    return length
