"""The Meta-World tasks as a table: what is in the scene, what it is called, what to do, in which order."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Object:
    """A thing with a name: the visible geoms of a body (its subtree, or only some parts), or a site."""

    name: str  # noun without article, as questions and answers use it
    color: str  # the colour word that fits the render; "" mixed
    body: str = ""
    parts: tuple[str, ...] = ()  # only the geoms of these materials or meshes; () all
    subtree: bool = False  # child bodies too
    site: str = ""  # a marker instead of a body
    touch: tuple[float, float, float] | None = None  # grasp point, metres from the centre; None: not to be held


@dataclasses.dataclass(frozen=True)
class Phase:
    """A subtask as an imperative; it lasts until its condition holds for the target (see `metaworld.CONDITIONS`)."""

    text: str
    until: str = "never"


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of the table. `instructions[0]` is the canonical one, the others paraphrase it."""

    objects: tuple[Object, ...]
    target: str  # the object that the instruction is about
    phases: tuple[Phase, ...]
    instructions: tuple[str, ...]
    joints: tuple[tuple[str, float], ...] = ()  # start positions that replace Meta-World's


_CENTRE = (0.0, 0.0, 0.0)


def _handle(name: str, color: str, body: str, *parts: str) -> Object:
    return Object(name, color, body, parts, touch=_CENTRE)


def _act(target: str, act: str) -> tuple[Phase, ...]:
    return Phase(f"move to the {target}", "touch"), Phase(act)


_MARKER = Object("goal marker", "green", site="goal", touch=_CENTRE)
_PUCK = Object("puck", "red", "obj", touch=_CENTRE)
_DOOR = (_handle("door handle", "gray", "door_link", "door_handle", "handle_base"),
         Object("door", "black", "door_link"), Object("safe", "black", "doorlockB"))
_DRAWER = (_handle("drawer handle", "white", "drawer_link", "drawer_white"), Object("drawer", "green", "drawer_link"),
           Object("cabinet", "green", "drawercase_link"))
_BUTTON = (Object("button", "red", "button", touch=(0, 0, 0.02)), Object("button box", "yellow", "buttonbox"))
_WINDOW = (_handle("window handle", "white", "windowb_a", "window_white"),
           Object("window", "brown", "window", subtree=True))
# Opening and closing start from the same half-open drawer, so that only the instruction tells them apart.
_HALF_OPEN = (("goal_slidey", -0.1),)

TASKS: dict[str, Task] = {
    "reach": Task(
        (_MARKER, _PUCK), "goal marker",
        (Phase("move to the goal marker", "near"), Phase("stay at the goal marker")),
        ("reach the goal marker", "move the gripper to the green marker", "go to the green goal marker",
         "bring the hand to the goal marker", "touch the green sphere with the gripper")),
    "door-open": Task(
        _DOOR, "door handle", _act("door handle", "pull the door open"),
        ("open the door", "pull the door open", "open the safe door by its handle", "swing the door open",
         "open the black door")),
    "drawer-open": Task(
        _DRAWER, "drawer handle", _act("drawer handle", "pull the drawer open"),
        ("open the drawer", "pull the drawer open", "pull out the green drawer", "slide the drawer out",
         "open the green drawer by its handle"), _HALF_OPEN),
    "drawer-close": Task(
        _DRAWER, "drawer handle", _act("drawer handle", "push the drawer closed"),
        ("close the drawer", "push the drawer closed", "push in the green drawer", "slide the drawer shut",
         "shut the green drawer"), _HALF_OPEN),
    "button-press-topdown": Task(
        _BUTTON, "button", _act("button", "press the button down"),
        ("press the button", "press the button from above", "push the red button down", "press down the red button",
         "hit the button on the box")),
    "window-close": Task(
        _WINDOW, "window handle", _act("window handle", "slide the window closed"),
        ("close the window", "slide the window closed", "push the window shut", "shut the window by its handle",
         "push the window handle until the window is closed")),
}

DEMO_TASKS = ("reach", "door-open", "drawer-open", "drawer-close", "button-press-topdown", "window-close")
MT10 = ("reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown",
        "peg-insert-side", "window-open", "window-close")
NUM_OBJECTS = 4  # object slots that hold any task's scene
