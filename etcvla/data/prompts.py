"""Every text that the model reads or writes, as segments: a prompt (both ways) and its targets (causal).

A question is asked PaliGemma's way: bos, question, newline; the answer ends with eos. An action prompt is pi0's
(`{instruction}\\n`), or, with the state written into it, pi0.5's (`Task: {instruction}, State: {bins};\\nAction: `).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from etcvla.data.tokenizer import Tokenizer

STATE_BINS = 256


class Segment(NamedTuple):
    """Token ids of one lesson."""

    prompt: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


def question(tokenizer: Tokenizer, text: str, answer: str | None = None) -> Segment:
    """A question and, in training, its answer."""
    prompt = tokenizer.encode(text, bos=True) + tokenizer.encode("\n")
    return Segment(prompt, [] if answer is None else tokenizer.encode(answer, eos=True))


def action(tokenizer: Tokenizer, instruction: str, *, state: np.ndarray | None = None,
           fast: Sequence[int] | None = None) -> Segment:
    """An instruction and, where the backbone learns actions, their FAST tokens.

    Args:
      state: float[S] normalised to [-1, 1], written into the prompt as `STATE_BINS` bins; None leaves it out.
      fast: FAST ids of the chunk.
    """
    instruction = instruction.strip().replace("_", " ").replace("\n", " ")
    text = f"{instruction}\n" if state is None else f"Task: {instruction}, State: {state_bins(state)};\nAction: "
    target = [] if fast is None else tokenizer.action_ids(fast) + [tokenizer.layout.eos]
    return Segment(tokenizer.encode(text, bos=True), target)


def state_bins(state: np.ndarray) -> str:
    """Bins of [-1, 1], as openpi counts them: 256 edges from -1 on, a value's bin is the last edge not above it."""
    edges = np.linspace(-1, 1, STATE_BINS + 1)[:-1]
    return " ".join(str(i) for i in np.digitize(state, edges) - 1)
