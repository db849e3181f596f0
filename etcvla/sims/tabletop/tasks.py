"""The tabletop's tasks: wording and subtasks, in which {x} is the named object's name."""

from __future__ import annotations

import dataclasses

from etcvla.sims.task import Phase


@dataclasses.dataclass(frozen=True)
class TableTask:
    """A task for any named object of a layout."""

    instructions: tuple[str, ...]  # the canonical instruction, then paraphrases
    held_out: tuple[str, ...]  # paraphrases for evaluation only
    phases: tuple[Phase, ...]
    # Whether the episode ends when the hand first touches anything. Nothing is simulated then
    # but the hand's motion.
    ends_at_touch: bool = False


TASKS = {
    "touch": TableTask(
        instructions=("touch the {x}", "reach the {x}", "go to the {x}", "put the hand on the {x}"),
        held_out=("reach for the {x}", "move the hand to the {x}", "go and touch the {x}"),
        phases=(Phase("move to the {x}", "near"), Phase("touch the {x}")),
        ends_at_touch=True,
    ),
}
