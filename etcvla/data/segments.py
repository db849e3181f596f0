"""Choose the segments of a row, and pack their text into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from etcvla.data import prompts
from etcvla.data.assets import Assets
from etcvla.data.row_options import RowOptions
from etcvla.data.stage_dataset import ANY_KIND
from etcvla.errors import UserError
from etcvla.etc.items import Item

Row = dict[str, np.ndarray]  # the fields of `etcvla.batch.SCHEMA`, without the batch axis


@dataclasses.dataclass(frozen=True)
class SegmentGroup:
    """Segments of a row whose losses are averaged.

    Attributes:
      segments: the segments.
      coefficient: coefficient of their mean loss, relative to the row's; form "share" only.
    """

    segments: Sequence[prompts.Segment]
    coefficient: float = 1.0


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
    ) -> prompts.Segment:
        """Return the segment of an action.

        Args:
          subtask: the current subtask; None if it is unknown.
          state: normalised, float32[S].
          chunk: normalised, float32[P, A].
        """
        return prompts.action(
            self.tokenizer,
            task,
            prompt=self.prompt,
            state=state if self.has_state else None,
            subtask=subtask or task,
            fast=self.fast.encode(chunk) if self.fast else None,
        )

    def subtask(self, task: str, subtask: str, state: np.ndarray) -> prompts.Segment:
        """Return the segment that asks for the current subtask; arguments as of `action`."""
        return prompts.subtask(
            self.tokenizer,
            task,
            prompt=self.prompt,
            state=state if self.has_state else None,
            answer=subtask,
        )

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
    row: Row, groups: Sequence[SegmentGroup], *, max_targets: int, required: int = 1
) -> list[list]:
    """Write segments one after another into a row; leave out extra segments that do not fit.

    Args:
      row: an empty row.
      groups: the segments.
      max_targets: most target tokens in a row.
      required: number of segments, the first ones, that must fit.

    Returns: for each group, the columns (a slice) of the targets of each segment written that has
      targets.

    Raises UserError if a required segment does not fit.
    """
    text_len = len(row["tokens"])
    length = 0
    num_targets = 0
    number = 0
    columns = []
    for group in groups:
        columns.append([])
        for segment in group.segments:
            number += 1
            stop = length + len(segment)
            segment_targets = len(segment.target)
            if stop > text_len or num_targets + segment_targets > max_targets:
                if number > required:
                    continue
                raise UserError(
                    f"a segment of {len(segment)} tokens, {segment_targets} of them targets, does "
                    f"not fit data.text_len {text_len} and data.max_targets {max_targets}, of "
                    f"which {length} and {num_targets} are used"
                )
            row["tokens"][length:stop] = segment.prompt + segment.target
            row["segment"][length:stop] = number
            if segment_targets:
                targets = slice(stop - segment_targets, stop)
                row["target"][targets] = True
                columns[-1].append(targets)
            length = stop
            num_targets += segment_targets
    return columns


def weigh_row(
    row: Row, groups: Sequence[SegmentGroup], columns: Sequence[list], form: str, coefficient: float
) -> None:
    """Write the loss weights of a row's target tokens and action values.

    Form "share": the row's loss is the flow's mean plus, for each group, its coefficient times the
    mean over its segments of each segment's token mean. The flow's mean is that over the chunks of
    each chunk's mean. Form "openpi": the same flow loss, and one mean over all target tokens. Form
    "objectives": every token and every value weighs 1.

    Args:
      row: a row with its segments and actions.
      groups: the segments.
      columns: their targets, from `pack_segments`.
      form: a name of `etcvla.loss_forms.LOSS_FORMS`.
      coefficient: coefficient of the row's loss in the total loss; not for "objectives".
    """
    num_values = np.count_nonzero(row["action_mask"], axis=(1, 2))  # of each chunk
    has_chunk = num_values > 0
    if form == "objectives":
        row["weight"][...] = row["target"]
        row["action_weight"][...] = has_chunk
        return
    chunk_weight = coefficient / max(np.count_nonzero(has_chunk), 1)
    row["action_weight"][...] = np.where(has_chunk, chunk_weight / np.maximum(num_values, 1), 0)
    if form == "openpi":
        num_targets = np.count_nonzero(row["target"])
        row["weight"][...] = row["target"] * (coefficient / max(num_targets, 1))
        return
    for group, segments in zip(groups, columns, strict=True):
        for targets in segments:
            num_tokens = targets.stop - targets.start
            weight = coefficient * group.coefficient / (len(segments) * num_tokens)
            row["weight"][targets] = weight
