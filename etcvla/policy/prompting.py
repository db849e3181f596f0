"""Prompts of a policy: instruction, state and subtask to segments, and segments to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etcvla.data import prompts
from etcvla.data.assets import Assets
from etcvla.errors import UserError
from etcvla.etc.question_types import clean_instruction
from etcvla.policy.observations import Batch, States

Segments = list[prompts.Segment]
# Prompts are padded to a multiple of this many tokens, so that few shapes are compiled.
_LENGTH_MULTIPLE = 16


class Prompting:
    """The prompts of one checkpoint.

    Args:
      assets: the tokenizer, and the prompt format in which training asked for actions.
      subtask_question: see `PolicyOptions`.
      text_len: see `PolicyOptions`.
    """

    def __init__(self, assets: Assets, *, subtask_question: str | None = None, text_len: int = 0):
        self._tokenizer = assets.tokenizer
        self._format_name = assets.action_spec["prompt"] if assets.action_spec else None
        self._subtask_question = subtask_question
        self._text_len = text_len
        self._min_text_len = 0

    def questions(self, texts: Sequence[str]) -> Segments:
        """Return question prompts."""
        return [prompts.question(self._tokenizer, text) for text in texts]

    def subtask_questions(self, instructions: Sequence[str], states: States) -> Segments:
        """Return prompts that ask for the subtask to do now; [] if the policy uses no subtasks.

        Args:
          states: normalised float32[S] each.
        """
        template = self._subtask_question
        if template:
            cleaned = [clean_instruction(instruction) for instruction in instructions]
            return self.questions([template.replace("{instruction}", text) for text in cleaned])
        if not self._has_subtask_field:
            return []
        return [
            prompts.subtask(self._tokenizer, instruction, prompt=self._format_name, state=state)
            for instruction, state in zip(instructions, states, strict=True)
        ]

    def actions(
        self,
        instructions: Sequence[str],
        states: States,
        subtasks: Sequence[str] = (),
    ) -> Segments:
        """Return prompts that ask for action chunks.

        Args:
          states: normalised float32[S] each.
          subtasks: one for each instruction, or none at all; the instruction replaces an empty
            subtask. A prompt format without a subtask field gets the subtask as its instruction.
        """
        segments = []
        rows = zip(instructions, states, subtasks or instructions, strict=True)
        for instruction, state, subtask in rows:
            subtask = subtask or instruction
            segment = prompts.action(
                self._tokenizer,
                instruction if self._has_subtask_field else subtask,
                prompt=self._format_name,
                state=state,
                subtask=subtask,
            )
            segments.append(segment)
        return segments

    @property
    def _has_subtask_field(self) -> bool:
        return bool(prompts.find_format(self._format_name).subtask)

    def reserve(self, segments: Segments) -> None:
        """Pad all later prompts at least to the length of the longest of these segments."""
        self._min_text_len = max(self._min_text_len, _round_up(_longest(segments)))

    def text_fields(self, segments: Segments) -> Batch:
        """Return the text fields of a batch with one prompt a row.

        Raises UserError if a prompt is longer than the policy's text_len.
        """
        longest = _longest(segments)
        if self._text_len and longest > self._text_len:
            raise UserError(
                f"a prompt has {longest} tokens, more than the policy's text_len {self._text_len}; "
                "shorten the instruction"
            )
        length = self._text_len or max(self._min_text_len, _round_up(longest))
        tokens = np.zeros((len(segments), length), np.int32)
        segment_ids = np.zeros_like(tokens)
        for i, segment in enumerate(segments):
            tokens[i, : len(segment)] = segment.prompt
            segment_ids[i, : len(segment)] = 1
        return {"tokens": tokens, "segment": segment_ids, "target": np.zeros_like(tokens, bool)}


def _longest(segments: Segments) -> int:
    return max(len(segment) for segment in segments)


def _round_up(length: int) -> int:
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
