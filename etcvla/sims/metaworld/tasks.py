"""The Meta-World tasks as a table: their objects, target, subtasks and instructions."""

from __future__ import annotations

import dataclasses

from etcvla.sims.task import ObjectSpec, Phase, Task

_CENTRE = (0.0, 0.0, 0.0)


def _graspable(
    name: str,
    color: str,
    body: str,
    *parts: str,
    at: tuple[float, float, float] = _CENTRE,
    subtree: bool = False,
) -> ObjectSpec:
    """Describe an object to grasp or touch, `at` metres from its centre."""
    return ObjectSpec(name, color, body, parts, subtree, touch=at)


def _touch_and(target: str, text: str) -> tuple[Phase, ...]:
    return Phase(f"move to the {target}", "touch"), Phase(text)


def _grasp_and(target: str, text: str) -> tuple[Phase, ...]:
    return (
        Phase(f"move to the {target}", "touch"),
        Phase(f"grasp the {target}", "moved"),
        Phase(text),
    )


def _reach_and(target: str, text: str) -> tuple[Phase, ...]:
    return Phase(f"move to the {target}", "near"), Phase(text)


# All markers have one color. They are rendered only for tasks whose instruction names them, because
# a marker reveals the goal.
_MARKER = ObjectSpec("goal marker", "green", site="goal", touch=_CENTRE)
_PUCK = _graspable("puck", "red", "obj")
_BLOCK = _graspable("block", "brown", "obj", subtree=True)
_WALL = ObjectSpec("wall", "brown", "wall", subtree=True)
_DOOR = (
    _graspable("door handle", "gray", "door_link", "door_handle", "handle_base"),
    ObjectSpec("door", "black", "door_link"),
    ObjectSpec("safe", "black", "doorlockB"),
)
_LOCK = (
    _graspable("lock", "gray", "lock_link"),
    ObjectSpec("door", "black", "door_link"),
    ObjectSpec("safe", "black", "doorlockA"),
)
_DRAWER = (
    _graspable("drawer handle", "white", "drawer_link", "drawer_white", at=(0, -0.03, 0)),
    ObjectSpec("drawer", "green", "drawer_link"),
    ObjectSpec("cabinet", "green", "drawercase_link"),
)
_BUTTON_DOWN = (
    _graspable("button", "red", "button", at=(0, 0, 0.05)),
    ObjectSpec("button box", "yellow", "buttonbox"),
)
_BUTTON = (
    _graspable("button", "red", "button", at=(0, -0.05, 0)),
    ObjectSpec("button box", "yellow", "buttonbox"),
)
_WINDOW = (
    _graspable("window handle", "white", "windowb_a", "window_white", at=(0, -0.03, 0)),
    ObjectSpec("window", "brown", "window", subtree=True),
)
_NUT = (_graspable("nut", "gray", "asmbly_peg", at=(0.06, 0, 0)), ObjectSpec("peg", "red", "peg"))
_COFFEE = (
    _graspable("mug", "white", "mug"),
    ObjectSpec("coffee machine", "red", "cm_link"),
    _graspable("coffee machine button", "gray", "cmbutton", at=(0, -0.03, 0)),
)
_FAUCET = (
    _graspable("faucet handle", "red", "faucet_link2", "faucet_red"),
    ObjectSpec("faucet", "gray", "faucet_link"),
)
_HANDLE = (
    _graspable("handle", "red", "handle_link", "hdlprs_red"),
    ObjectSpec("handle box", "gray", "hdlprs"),
)
_HANDLE_UP = (
    _graspable("handle", "red", "handle_link", "hdlprs_red", at=(0.05, -0.03, 0)),
    _HANDLE[1],
)
_HANDLE_UP_SIDE = (
    _graspable("handle", "red", "handle_link", "hdlprs_red", at=(-0.04, 0, 0)),
    _HANDLE[1],
)
_PLATE = (
    _graspable("puck", "black", "puck_channel", subtree=True),
    ObjectSpec("goal net", "white", "puck_goal", subtree=True),
)
_STICK = (
    _graspable("stick", "blue", "stick", subtree=True),
    ObjectSpec("thermos", "green", "object", subtree=True),
)
# Opening and closing start from the same half-open drawer, so only the instruction distinguishes
# them.
_HALF_OPEN = (("goal_slidey", -0.1),)

TASKS: dict[str, Task] = {
    "assembly": Task(
        _NUT,
        "nut",
        _grasp_and("nut", "put the nut on the peg"),
        (
            "put the nut on the peg",
            "place the ring over the red peg",
            "pick up the nut and put it on the peg",
            "assemble the nut and the peg",
        ),
    ),
    "basketball": Task(
        (
            _graspable("basketball", "orange", "basketball"),
            ObjectSpec("hoop", "red", "hooplink"),
            ObjectSpec("backboard", "white", "backboardlink"),
        ),
        "basketball",
        _grasp_and("basketball", "drop the basketball into the hoop"),
        (
            "put the basketball into the hoop",
            "dunk the basketball",
            "drop the orange ball through the hoop",
            "pick up the basketball and put it into the basket",
        ),
    ),
    "bin-picking": Task(
        (
            _graspable("block", "green", "objA"),
            ObjectSpec("red bin", "red", "binA"),
            ObjectSpec("blue bin", "blue", "binB"),
        ),
        "block",
        _grasp_and("block", "put the block into the blue bin"),
        (
            "move the block to the blue bin",
            "pick the green block and put it into the blue bin",
            "take the block from the red bin to the blue bin",
            "put the green block into the other bin",
        ),
    ),
    "box-close": Task(
        (
            _graspable("lid", "brown", "top_link", at=(0, 0, 0.04)),
            ObjectSpec("box", "brown", "box"),
        ),
        "lid",
        _grasp_and("lid", "put the lid on the box"),
        (
            "close the box",
            "put the lid on the box",
            "cover the box with its lid",
            "pick up the lid and close the box",
        ),
    ),
    "button-press": Task(
        _BUTTON,
        "button",
        _touch_and("button", "push the button in"),
        (
            "press the button on the side",
            "push the red button in",
            "press the red button",
            "push the button into the box",
        ),
    ),
    "button-press-topdown": Task(
        _BUTTON_DOWN,
        "button",
        _touch_and("button", "press the button down"),
        (
            "press the button",
            "press the button from above",
            "push the red button down",
            "press down the red button",
            "hit the button on the box",
        ),
    ),
    "button-press-topdown-wall": Task(
        (*_BUTTON_DOWN, _WALL),
        "button",
        _touch_and("button", "press the button down"),
        (
            "press the button behind the wall from above",
            "go over the wall and press the button down",
            "push the red button behind the wall down",
            "avoid the wall and press down the red button",
        ),
    ),
    "button-press-wall": Task(
        (*_BUTTON, _WALL),
        "button",
        _touch_and("button", "push the button in"),
        (
            "press the button behind the wall",
            "go around the wall and push the button in",
            "push in the red button behind the wall",
            "avoid the wall and press the red button",
        ),
    ),
    "coffee-button": Task(
        _COFFEE,
        "coffee machine button",
        _touch_and("coffee machine button", "press the coffee machine button"),
        (
            "press the button of the coffee machine",
            "start the coffee machine",
            "push the coffee machine button",
            "make a coffee",
        ),
    ),
    "coffee-pull": Task(
        (*_COFFEE, dataclasses.replace(_MARKER, site="mug_goal")),
        "mug",
        _grasp_and("mug", "pull the mug to the goal marker"),
        (
            "pull the mug to the goal marker",
            "take the mug away from the coffee machine",
            "move the white mug to the green marker",
            "pull the mug from the coffee machine to the marker",
        ),
    ),
    "coffee-push": Task(
        _COFFEE,
        "mug",
        _grasp_and("mug", "push the mug under the coffee machine"),
        (
            "push the mug under the coffee machine",
            "put the mug under the coffee machine",
            "move the white mug to the coffee machine",
            "place the mug where the coffee comes out",
        ),
    ),
    "dial-turn": Task(
        (_graspable("dial", "gray", "dial", at=(0.03, -0.02, 0.01), subtree=True),),
        "dial",
        _touch_and("dial", "turn the dial"),
        ("turn the dial", "rotate the dial", "turn the gray dial", "twist the dial around"),
    ),
    "disassemble": Task(
        _NUT,
        "nut",
        _grasp_and("nut", "lift the nut off the peg"),
        (
            "take the nut off the peg",
            "lift the ring off the red peg",
            "remove the nut from the peg",
            "pull the nut up from the peg",
        ),
    ),
    "door-close": Task(
        (_DOOR[0], _graspable("door", "black", "door_link", "door"), _DOOR[2]),
        "door",
        _touch_and("door", "push the door closed"),
        (
            "close the door",
            "push the door shut",
            "shut the safe door",
            "close the black door of the safe",
        ),
        opposite="door-open",
    ),
    "door-lock": Task(
        _LOCK,
        "lock",
        _touch_and("lock", "turn the lock down"),
        (
            "lock the door",
            "turn the lock of the door",
            "rotate the lock to lock the door",
            "lock the safe",
        ),
    ),
    "door-open": Task(
        _DOOR,
        "door handle",
        _touch_and("door handle", "pull the door open"),
        (
            "open the door",
            "pull the door open",
            "open the safe door by its handle",
            "swing the door open",
            "open the black door",
        ),
        opposite="door-close",
    ),
    "door-unlock": Task(
        _LOCK,
        "lock",
        _touch_and("lock", "turn the lock to the side"),
        (
            "unlock the door",
            "turn the lock back",
            "rotate the lock to unlock the door",
            "unlock the safe",
        ),
    ),
    "drawer-close": Task(
        _DRAWER,
        "drawer handle",
        _touch_and("drawer handle", "push the drawer closed"),
        (
            "close the drawer",
            "push the drawer closed",
            "push in the green drawer",
            "slide the drawer shut",
            "shut the green drawer",
        ),
        _HALF_OPEN,
        opposite="drawer-open",
    ),
    "drawer-open": Task(
        _DRAWER,
        "drawer handle",
        _touch_and("drawer handle", "pull the drawer open"),
        (
            "open the drawer",
            "pull the drawer open",
            "pull out the green drawer",
            "slide the drawer out",
            "open the green drawer by its handle",
        ),
        _HALF_OPEN,
        opposite="drawer-close",
    ),
    "faucet-close": Task(
        _FAUCET,
        "faucet handle",
        _touch_and("faucet handle", "turn the faucet handle clockwise"),
        (
            "close the faucet",
            "turn off the faucet",
            "turn the red faucet handle clockwise",
            "shut the tap",
        ),
        opposite="faucet-open",
    ),
    "faucet-open": Task(
        _FAUCET,
        "faucet handle",
        _touch_and("faucet handle", "turn the faucet handle counterclockwise"),
        (
            "open the faucet",
            "turn on the faucet",
            "turn the red faucet handle counterclockwise",
            "open the tap",
        ),
        opposite="faucet-close",
    ),
    "hammer": Task(
        (
            _graspable("hammer", "red", "hammer", at=(-0.06, 0, 0)),
            ObjectSpec("nail", "gray", "nail_link"),
            ObjectSpec("wooden block", "brown", "hammerblock"),
        ),
        "hammer",
        _grasp_and("hammer", "hit the nail with the hammer"),
        (
            "hammer the nail",
            "hit the nail with the hammer",
            "drive the nail into the wooden block",
            "pick up the hammer and hit the nail",
        ),
    ),
    "hand-insert": Task(
        (_MARKER, _BLOCK),
        "block",
        _grasp_and("block", "insert the block into the hole"),
        (
            "insert the block into the hole",
            "put the wooden block into the hole",
            "carry the block to the green marker in the hole",
            "take the block and reach into the hole with it",
        ),
    ),
    "handle-press": Task(
        _HANDLE,
        "handle",
        _touch_and("handle", "press the handle down"),
        (
            "press the handle down",
            "push the red handle down",
            "press down the red handle",
            "lower the handle",
        ),
    ),
    "handle-press-side": Task(
        _HANDLE,
        "handle",
        _touch_and("handle", "press the handle down"),
        (
            "press the handle down from the side",
            "push the red handle of the side box down",
            "press down the red handle at the side",
            "lower the handle at the side",
        ),
    ),
    "handle-pull": Task(
        _HANDLE_UP,
        "handle",
        _touch_and("handle", "pull the handle up"),
        ("pull the handle up", "lift the red handle", "pull up the red handle", "raise the handle"),
    ),
    "handle-pull-side": Task(
        _HANDLE_UP_SIDE,
        "handle",
        _touch_and("handle", "pull the handle up"),
        (
            "pull the handle up from the side",
            "lift the red handle at the side",
            "pull up the red handle at the side",
            "raise the handle at the side",
        ),
    ),
    "lever-pull": Task(
        (
            _graspable("lever", "blue", "lever_link1", "lever_blue"),
            ObjectSpec("lever stand", "gray", "lever", subtree=True),
        ),
        "lever",
        _touch_and("lever", "push the lever up"),
        (
            "pull the lever up",
            "lift the blue lever",
            "raise the lever",
            "move the blue knob of the lever up",
        ),
    ),
    "peg-insert-side": Task(
        (
            _graspable("peg", "green", "peg", at=(0.03, 0, 0)),
            ObjectSpec("box", "red", "box", subtree=True),
        ),
        "peg",
        _grasp_and("peg", "insert the peg into the hole of the box"),
        (
            "insert the peg into the hole",
            "put the green peg into the box from the side",
            "pick up the peg and insert it sideways",
            "push the peg into the hole of the red box",
        ),
    ),
    "peg-unplug-side": Task(
        (_graspable("plug", "black", "plug"), ObjectSpec("socket", "white", "plug_wall")),
        "plug",
        _touch_and("plug", "pull the plug out of the socket"),
        (
            "unplug the peg",
            "pull the plug out of the socket",
            "take the plug out sideways",
            "remove the black plug from the socket",
        ),
    ),
    "pick-out-of-hole": Task(
        (_MARKER, _PUCK),
        "puck",
        _grasp_and("puck", "carry the puck to the goal marker"),
        (
            "pick the puck out of the hole",
            "take the red puck out of the hole to the marker",
            "lift the puck from the hole to the goal marker",
            "pick up the puck in the hole and bring it to the marker",
        ),
    ),
    "pick-place": Task(
        (_MARKER, _PUCK),
        "puck",
        _grasp_and("puck", "carry the puck to the goal marker"),
        (
            "pick up the puck and bring it to the goal marker",
            "pick and place the puck at the goal marker",
            "grasp the red puck and move it to the green marker",
            "carry the puck to the goal marker",
            "lift the puck to the green marker",
        ),
    ),
    "pick-place-wall": Task(
        (_MARKER, _PUCK, _WALL),
        "puck",
        _grasp_and("puck", "carry the puck over the wall to the goal marker"),
        (
            "carry the puck over the wall to the goal marker",
            "pick up the puck and place it behind the wall",
            "grasp the red puck and lift it over the wall to the marker",
            "bring the puck to the marker past the wall",
        ),
    ),
    "plate-slide": Task(
        _PLATE,
        "puck",
        _touch_and("puck", "slide the puck into the net"),
        (
            "slide the puck into the net",
            "push the black puck into the goal net",
            "score with the puck",
            "slide the plate into the goal",
        ),
    ),
    "plate-slide-back": Task(
        (_MARKER, *_PLATE),
        "puck",
        _touch_and("puck", "pull the puck back to the goal marker"),
        (
            "pull the puck out of the net",
            "slide the puck back to the goal marker",
            "get the black puck out of the net to the marker",
            "slide the plate back out of the goal",
        ),
    ),
    "plate-slide-back-side": Task(
        (_MARKER, *_PLATE),
        "puck",
        _touch_and("puck", "slide the puck sideways to the goal marker"),
        (
            "slide the puck out of the net sideways",
            "slide the puck sideways to the goal marker",
            "push the black puck from the net at the side to the marker",
            "slide the plate out of the goal to the side",
        ),
    ),
    "plate-slide-side": Task(
        _PLATE,
        "puck",
        _touch_and("puck", "slide the puck sideways into the net"),
        (
            "slide the puck sideways into the net",
            "push the black puck into the net at the side",
            "slide the puck to the side into the goal net",
            "slide the plate into the goal at the side",
        ),
    ),
    "push": Task(
        (_MARKER, _PUCK),
        "puck",
        _touch_and("puck", "push the puck to the goal marker"),
        (
            "push the puck to the goal marker",
            "slide the puck to the green marker",
            "move the red puck to the goal marker",
            "push the red puck over the table to the marker",
        ),
    ),
    "push-back": Task(
        (_MARKER, _BLOCK),
        "block",
        _touch_and("block", "pull the block back to the goal marker"),
        (
            "pull the block back to the goal marker",
            "drag the block back to the green marker",
            "move the wooden block towards the robot to the marker",
            "slide the block back to the marker",
        ),
    ),
    "push-wall": Task(
        (_MARKER, _PUCK, _WALL),
        "puck",
        _touch_and("puck", "push the puck around the wall to the goal marker"),
        (
            "push the puck around the wall to the goal marker",
            "slide the puck past the wall to the green marker",
            "move the red puck behind the wall to the marker",
            "bypass the wall and push the puck to the marker",
        ),
    ),
    "reach": Task(
        (_MARKER, _PUCK),
        "goal marker",
        _reach_and("goal marker", "stay at the goal marker"),
        (
            "reach the goal marker",
            "move the gripper to the green marker",
            "go to the green goal marker",
            "bring the hand to the goal marker",
            "touch the green sphere with the gripper",
        ),
    ),
    "reach-wall": Task(
        (_MARKER, _PUCK, _WALL),
        "goal marker",
        _reach_and("goal marker", "stay at the goal marker"),
        (
            "reach the goal marker behind the wall",
            "move the gripper over the wall to the green marker",
            "bypass the wall and go to the goal marker",
            "bring the hand to the marker behind the wall",
        ),
    ),
    "shelf-place": Task(
        (_graspable("block", "blue", "obj"), ObjectSpec("shelf", "brown", "shelf", subtree=True)),
        "block",
        _grasp_and("block", "put the block on the shelf"),
        (
            "put the block on the shelf",
            "pick up the blue block and place it on the shelf",
            "place the block into the shelf",
            "carry the blue block to the shelf",
        ),
    ),
    "soccer": Task(
        (
            _graspable("soccer ball", "white", "soccer_ball1"),
            ObjectSpec("soccer goal", "blue", "soccer_goal"),
        ),
        "soccer ball",
        _touch_and("soccer ball", "push the soccer ball into the goal"),
        (
            "kick the soccer ball into the goal",
            "push the soccer ball into the goal",
            "score a goal with the ball",
            "move the ball into the blue goal",
        ),
    ),
    "stick-pull": Task(
        (*_STICK, _MARKER),
        "stick",
        _grasp_and("stick", "pull the thermos to the goal marker with the stick"),
        (
            "pull the thermos with the stick",
            "grasp the stick and pull the thermos to the marker",
            "use the blue stick to pull the thermos to the goal marker",
            "hook the thermos with the stick and pull it",
        ),
    ),
    "stick-push": Task(
        (*_STICK, _MARKER),
        "stick",
        _grasp_and("stick", "push the thermos to the goal marker with the stick"),
        (
            "push the thermos with the stick",
            "grasp the stick and push the thermos to the marker",
            "use the blue stick to push the thermos to the goal marker",
            "pick up the stick and push the thermos with it",
        ),
    ),
    "sweep": Task(
        (_BLOCK,),
        "block",
        _touch_and("block", "sweep the block off the table"),
        (
            "sweep the block off the table",
            "push the block off the table",
            "wipe the wooden block from the table",
            "sweep the brown block away",
        ),
    ),
    "sweep-into": Task(
        (_MARKER, _BLOCK),
        "block",
        _touch_and("block", "sweep the block into the hole"),
        (
            "sweep the block into the hole",
            "push the block to the goal marker in the hole",
            "sweep the wooden block to the green marker",
            "slide the block into the hole",
        ),
    ),
    "window-close": Task(
        _WINDOW,
        "window handle",
        _touch_and("window handle", "slide the window closed"),
        (
            "close the window",
            "slide the window closed",
            "push the window shut",
            "shut the window by its handle",
            "push the window handle until the window is closed",
        ),
        opposite="window-open",
    ),
    "window-open": Task(
        _WINDOW,
        "window handle",
        _touch_and("window handle", "slide the window open"),
        (
            "open the window",
            "slide the window open",
            "push the window open by its handle",
            "move the white handle until the window is open",
        ),
        opposite="window-close",
    ),
}

# Noun -> shape word, where it is unambiguous.
SHAPES = {
    "goal marker": "sphere",
    "puck": "cylinder",
    "basketball": "sphere",
    "soccer ball": "sphere",
    "button": "cylinder",
    "button box": "box",
    "cabinet": "box",
    "drawer": "box",
    "safe": "box",
    "wall": "box",
    "red bin": "box",
    "blue bin": "box",
    "box": "box",
    "nut": "ring",
    "hoop": "ring",
    "dial": "cylinder",
    "wooden block": "box",
    "shelf": "box",
    "window": "box",
    "door": "box",
}

DEMO_TASKS = (
    "reach",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "window-close",
)
MT10 = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)
NUM_OBJECTS = 4  # object slots that hold any task's scene
