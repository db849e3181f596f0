"""All text that the model reads or writes, as segments: a prompt and its targets.

Prompt tokens attend in both directions, targets causally. A question has PaliGemma's format: bos,
question, newline (`data.question_end`); the answer ends with eos. Actions use one of `FORMATS`,
which a stage's config names (`data.prompt`) and its checkpoint keeps.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from etcvla.data.tokenizer import Tokenizer
from etcvla.names import lookup

STATE_BINS = 256


class Segment(NamedTuple):
    """The token ids of a prompt and its targets."""

    prompt: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclasses.dataclass(frozen=True)
class Format:
    """The prompt of an action, and the text around its FAST tokens if the backbone predicts them.

    The templates' fields are {task}, the instruction; {state}, the bins of the state's numbers; and
    {subtask}, the current subtask.

    Attributes:
      prompt: template of the action's prompt.
      opening, closing: text before and after the FAST tokens; it is predicted like them.
      subtask: template of the prompt that asks for the subtask; "": the format has none.
      lower: write the task in lower case and keep its line breaks.
    """

    prompt: str
    opening: str = ""
    closing: str = ""
    subtask: str = ""
    lower: bool = False

    @property
    def has_state(self) -> bool:
        """Whether a prompt contains the state."""
        return "{state}" in self.prompt + self.subtask


FORMATS = {
    # openpi's three tokenizers. pi0's expert reads the state as a token of its own; pi0.5 without a
    # state in its prompt does not read the state.
    "pi0": Format("{task}\n"),
    "pi05": Format("Task: {task}, State: {state};\nAction: "),
    "pi0_fast": Format(
        "Task: {task}, State: {state};\n", opening="Action: ", closing="|", lower=True
    ),
    # pi0.5 acts on the subtask that it wrote instead of the task (arXiv 2504.16054). The prompt for
    # the subtask is not published; the released weights answer this one.
    "pi05_subtask": Format(
        "Task: {subtask}, State: {state};\nAction: ", subtask="Task: {task}. Subtask: "
    ),
    # This project's format has both; the action's prompt begins with the subtask's.
    "subtask": Format(
        "Task: {task}, State: {state};\nSubtask: {subtask};\nAction: ",
        subtask="Task: {task}, State: {state};\nSubtask: ",
    ),
}


def find_format(name: str) -> Format:
    """Return a format of `FORMATS`; an unknown name is an error with the nearest name."""
    return lookup(FORMATS, name, "data.prompt")


def question(tokenizer: Tokenizer, text: str, answer: str | None = None) -> Segment:
    """Return the segment of a question and, in training, its answer."""
    prompt = tokenizer.encode(text, bos=True) + tokenizer.encode(tokenizer.layout.question_end)
    return Segment(prompt, _answer(tokenizer, answer))


def action(
    tokenizer: Tokenizer,
    task: str,
    *,
    prompt: str,
    state: np.ndarray | None = None,
    subtask: str | None = None,
    fast: Sequence[int] | None = None,
) -> Segment:
    """Return the segment of an action: its prompt and, if given, its FAST tokens as targets.

    Args:
      prompt: a name of `FORMATS`.
      state: float[S] normalised to [-1, 1]; None if the format has no state.
      subtask: the current subtask; None if the format has no subtask.
      fast: FAST tokens of the chunk.

    Raises ValueError for an unknown format, or if the format needs a state or a subtask that
    is not given.
    """
    if state is None:
        prompt_ids = list(_prompt_without_state(tokenizer, prompt, task, subtask))
    else:
        text = _fill(find_format(prompt).prompt, prompt, task, state, subtask)
        prompt_ids = tokenizer.encode(text, bos=True)
    if fast is None:
        return Segment(prompt_ids, [])
    opening, closing = _fast_frame(tokenizer, prompt)
    return Segment(prompt_ids, [*opening, *tokenizer.action_ids(fast), *closing])


@functools.lru_cache(4096)  # instructions repeat at every step of an episode and across episodes
def _prompt_without_state(
    tokenizer: Tokenizer, prompt: str, task: str, subtask: str | None
) -> tuple[int, ...]:
    text = _fill(find_format(prompt).prompt, prompt, task, None, subtask)
    return tuple(tokenizer.encode(text, bos=True))


def subtask(
    tokenizer: Tokenizer,
    task: str,
    *,
    prompt: str,
    state: np.ndarray | None = None,
    answer: str | None = None,
) -> Segment:
    """Return the segment that asks for the current subtask and, in training, its answer.

    The arguments and errors are those of `action`. Raises ValueError for a format without subtasks.
    """
    template = find_format(prompt).subtask
    if not template:
        names = [name for name, other in FORMATS.items() if other.subtask]
        raise ValueError(f"prompt {prompt!r} has no subtasks; choose from {', '.join(names)}")
    text = _fill(template, prompt, task, state, None)
    return Segment(tokenizer.encode(text, bos=True), _answer(tokenizer, answer))


def _answer(tokenizer: Tokenizer, answer: str | None) -> list[int]:
    """Return the target ids of an answer; [] if there is none."""
    return [] if answer is None else tokenizer.encode(answer, eos=True)


def _fast_frame(tokenizer: Tokenizer, prompt: str) -> tuple[list[int], list[int]]:
    """Return the ids before and after the FAST tokens."""
    prompt_format = find_format(prompt)
    opening = tokenizer.encode(prompt_format.opening)
    closing = tokenizer.encode(prompt_format.closing, eos=True)
    return opening, closing


def read_action(tokenizer: Tokenizer, ids: Iterable[int], *, prompt: str) -> list[int]:
    """Return the FAST tokens in the ids that the model wrote.

    Ids without the format's opening give [], which does not decode to a chunk.
    """
    ids = [int(token) for token in ids]
    opening, _ = _fast_frame(tokenizer, prompt)
    if ids[: len(opening)] != opening:
        return []
    action_ids = itertools.takewhile(tokenizer.layout.action.contains, ids[len(opening) :])
    return tokenizer.action_tokens(list(action_ids))


def action_vocabulary(tokenizer: Tokenizer, *, prompt: str, fast_vocab: int) -> list[int]:
    """Return the sorted ids that an action's targets may contain, to decode no others."""
    opening, closing = _fast_frame(tokenizer, prompt)
    return sorted({*opening, *closing, *tokenizer.action_ids(range(fast_vocab))})


def state_bins(state: np.ndarray) -> str:
    """Return the bins of a state float[S], as openpi counts them, separated by spaces.

    There are 256 edges from -1 on; a value's bin is the last edge that is not above it.
    """
    edges = np.linspace(-1, 1, STATE_BINS + 1)[:-1]
    return " ".join(str(i) for i in np.digitize(state, edges) - 1)


def _fill(
    template: str, prompt: str, task: str, state: np.ndarray | None, subtask: str | None
) -> str:
    """Fill a template of the format named `prompt`."""
    lower = FORMATS[prompt].lower
    values = {"task": _clean(task, lower)}
    if state is not None:
        values["state"] = state_bins(state)
    if subtask is not None:
        values["subtask"] = _clean(subtask, lower)
    try:
        return template.format(**values)
    except KeyError as error:
        raise ValueError(
            f"prompt {prompt!r} contains the {error.args[0]}, but none was given"
        ) from None


def _clean(text: str, lower: bool) -> str:
    text = text.strip().replace("_", " ")
    return text.lower() if lower else text.replace("\n", " ")
