"""Every text that the model reads or writes, as segments: a prompt (both ways) and its targets (causal).

A question is asked PaliGemma's way: bos, question, newline; the answer ends with eos. An action is asked for in one of
`FORMATS`, which a stage's config names (`data.prompt`) and its checkpoint keeps.
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
    """Token ids of one lesson."""

    prompt: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclasses.dataclass(frozen=True)
class Format:
    """How an action is asked for, and how its FAST tokens are framed where the backbone writes them.

    The templates' fields: {task} the instruction, {state} the bins of every number of the state, {subtask} what to do
    of it now.
    """

    prompt: str
    opening: str = ""  # written before the FAST tokens, and learnt like them
    closing: str = ""  # and after
    subtask: str = ""  # how the subtask is asked for; "" where the prompt speaks of none
    lower: bool = False  # the task in lower case, its line breaks left

    @property
    def has_state(self) -> bool:
        return "{state}" in self.prompt + self.subtask


FORMATS = {
    # openpi's three tokenizers. pi0 has the state as a token of the expert's (pi0.5 without it: nowhere).
    "pi0": Format("{task}\n"),
    "pi05": Format("Task: {task}, State: {state};\nAction: "),
    "pi0_fast": Format(
        "Task: {task}, State: {state};\n", opening="Action: ", closing="|", lower=True
    ),
    # pi0.5 acts on the subtask that it wrote, not on the task (arXiv 2504.16054); its question is not published: this
    # is the one that its released weights were found to answer.
    "pi05_subtask": Format(
        "Task: {subtask}, State: {state};\nAction: ", subtask="Task: {task}. Subtask: "
    ),
    # Ours, on both: the action's prompt begins with the subtask's.
    "subtask": Format(
        "Task: {task}, State: {state};\nSubtask: {subtask};\nAction: ",
        subtask="Task: {task}, State: {state};\nSubtask: ",
    ),
}


def find_format(name: str) -> Format:
    """The format of this name; ValueError with the nearest name if there is none."""
    return lookup(FORMATS, name, "data.prompt")


def question(tokenizer: Tokenizer, text: str, answer: str | None = None) -> Segment:
    """A question and, in training, its answer."""
    prompt = tokenizer.encode(text, bos=True) + tokenizer.encode("\n")
    return Segment(prompt, [] if answer is None else tokenizer.encode(answer, eos=True))


def action(
    tokenizer: Tokenizer,
    task: str,
    *,
    prompt: str,
    state: np.ndarray | None = None,
    subtask: str | None = None,
    fast: Sequence[int] | None = None,
) -> Segment:
    """What a robot is told and, where the backbone learns actions, their FAST tokens.

    Args:
      prompt: a name of `FORMATS`.
      state: float[S] normalised to [-1, 1].
      subtask: what to do now, for a format that says so.
      fast: FAST tokens of the chunk.

    Raises ValueError for an unknown format, or one that speaks of a state or a subtask that is not given.
    """
    form = find_format(prompt)
    told = (
        _told(tokenizer, prompt, task, subtask)
        if state is None
        else tokenizer.encode(_fill(form.prompt, prompt, task, state, subtask), bos=True)
    )
    target = (
        []
        if fast is None
        else [
            *tokenizer.encode(form.opening),
            *tokenizer.action_ids(fast),
            *tokenizer.encode(form.closing, eos=True),
        ]
    )
    return Segment(list(told), target)


@functools.lru_cache(4096)  # instructions repeat at every step of an episode, and in most episodes
def _told(tokenizer: Tokenizer, prompt: str, task: str, subtask: str | None) -> tuple[int, ...]:
    return tuple(
        tokenizer.encode(_fill(find_format(prompt).prompt, prompt, task, None, subtask), bos=True)
    )


def subtask(
    tokenizer: Tokenizer,
    task: str,
    *,
    prompt: str,
    state: np.ndarray | None = None,
    answer: str | None = None,
) -> Segment:
    """Asks what to do now, and in training says it; arguments and errors as of `action`.

    Raises ValueError for a format without subtasks.
    """
    form = find_format(prompt)
    if not form.subtask:
        raise ValueError(
            f"prompt {prompt!r} has no subtasks; those with: "
            f"{', '.join(name for name, other in FORMATS.items() if other.subtask)}"
        )
    text = _fill(form.subtask, prompt, task, state, None)
    return Segment(
        tokenizer.encode(text, bos=True),
        [] if answer is None else tokenizer.encode(answer, eos=True),
    )


def read_action(tokenizer: Tokenizer, ids: Iterable[int], *, prompt: str) -> list[int]:
    """FAST tokens of what the model wrote; [], which decodes to no chunk, where it began with something else."""
    opening, ids = tokenizer.encode(find_format(prompt).opening), list(map(int, ids))
    if ids[: len(opening)] != opening:
        return []
    return tokenizer.action_tokens(
        list(itertools.takewhile(tokenizer.layout.action.contains, ids[len(opening) :]))
    )


def action_vocabulary(tokenizer: Tokenizer, *, prompt: str, fast_vocab: int) -> list[int]:
    """The ids that an action's text is made of, to decode nothing else: sorted, `eos` among them."""
    form = find_format(prompt)
    return sorted(
        {
            *tokenizer.encode(form.opening),
            *tokenizer.encode(form.closing, eos=True),
            *tokenizer.action_ids(range(fast_vocab)),
        }
    )


def state_bins(state: np.ndarray) -> str:
    """Bins of [-1, 1], as openpi counts them: 256 edges from -1 on, a value's bin is the last edge not above it."""
    edges = np.linspace(-1, 1, STATE_BINS + 1)[:-1]
    return " ".join(str(i) for i in np.digitize(state, edges) - 1)


def _fill(
    template: str, name: str, task: str, state: np.ndarray | None, subtask: str | None
) -> str:
    known = {"task": _clean(task, FORMATS[name].lower)}
    if state is not None:
        known["state"] = state_bins(state)
    if subtask is not None:
        known["subtask"] = _clean(subtask, FORMATS[name].lower)
    try:
        return template.format(**known)
    except KeyError as error:
        raise ValueError(
            f"prompt {name!r} speaks of the {error.args[0]}, and none was given"
        ) from None


def _clean(text: str, lower: bool) -> str:
    text = text.strip().replace("_", " ")
    return text.lower() if lower else text.replace("\n", " ")
