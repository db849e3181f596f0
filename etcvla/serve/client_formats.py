"""What other people's clients call things: the one table of them, and their messages in a policy's terms.

Sources of the facts: openpi's libero_policy.py, droid_policy.py, aloha_policy.py and examples; VLABench's openpi.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PROTOCOL = 1  # of what is ours in a message: openpi's own has no number


@dataclasses.dataclass(frozen=True)
class ClientFormat:
    """How a client names what it sends. A map in a map is one name, with a slash: images/cam_high.

    cameras: its name -> ours. A camera that the checkpoint's own dataset calls as the client does needs no line.
    state: numbers that make up the state, one after another.
    upright: it turns images that its simulator renders upside down, so that they need not be turned again.
    """

    cameras: Mapping[str, str]
    state: tuple[str, ...] = ("observation/state",)
    upright: bool = False


CLIENT_FORMATS = {
    "own": ClientFormat({}, state=("state",)),  # images/<camera>
    "libero": ClientFormat(
        {"observation/image": "front", "observation/wrist_image": "wrist"}, upright=True
    ),
    "vlabench": ClientFormat(
        {
            "observation/image": "front",
            "observation/second_image": "side",
            "observation/wrist_image": "wrist",
        }
    ),
    "simpler": ClientFormat({"observation/primary_image": "front"}),
    "droid": ClientFormat(
        {
            "observation/exterior_image_1_left": "front",
            "observation/exterior_image_2_left": "side",
            "observation/wrist_image_left": "wrist",
        },
        state=("observation/joint_position", "observation/gripper_position"),
    ),
    "aloha": ClientFormat(
        {
            "images/cam_high": "front",
            "images/cam_low": "low",
            "images/cam_left_wrist": "left_wrist",
            "images/cam_right_wrist": "right_wrist",
        },
        state=("state",),
    ),
}
INSTRUCTION = ("prompt", "instruction")
PREFIX, DELAY = "rtc/prefix", "rtc/delay"  # real-time chunking; see `etcvla.serve.client`


def translate(
    message: Mapping[str, Any],
    cameras: Sequence[str],
    *,
    instruction: str = "",
    turned: Sequence[str] = (),
) -> dict[str, Any]:
    """An observation as `Policy.act` takes it, from a message of any client in the table.

    Args:
      cameras: those that the policy looks through; others are not touched.
      instruction: where the client gives none. turned: cameras that the policy turns.

    Raises ValueError naming what is missing, or what is of another kind than expected.
    """
    flat = _flatten(message)
    if flat.get("protocol", PROTOCOL) != PROTOCOL:
        raise ValueError(
            f"the client speaks protocol {flat['protocol']!r}, this server speaks {PROTOCOL}; update the "
            "older of the two"
        )
    client = _find_client(flat, cameras)
    images = {
        ours: _image(theirs, flat[theirs]) for ours, theirs in _sources(client, cameras).items()
    }
    if client.upright:
        images |= {name: np.rot90(images[name], 2) for name in turned if name in images}
    observation = {
        "images": images,
        "state": np.concatenate([_numbers(name, flat[name]) for name in client.state]),
        "instruction": _instruction(flat, instruction),
    }
    if PREFIX in flat:
        observation |= {"prefix": _prefix(flat[PREFIX]), "delay": _whole(DELAY, flat.get(DELAY))}
    return observation


def _flatten(message: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in message.items():
        flat |= (
            _flatten(value, f"{prefix}{name}/")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}
        )
    return flat


def _sources(client: ClientFormat, cameras: Sequence[str]) -> dict[str, str]:
    """Our camera -> the client's name of it."""
    theirs = {ours: name for name, ours in client.cameras.items()}
    return {camera: theirs.get(camera, f"images/{camera}") for camera in cameras}


def _find_client(flat: Mapping[str, Any], cameras: Sequence[str]) -> ClientFormat:
    """The first line of the table all of whose names are there; an error tells what the nearest line lacks."""
    lacking = {
        name: [
            key for key in (*_sources(client, cameras).values(), *client.state) if key not in flat
        ]
        for name, client in CLIENT_FORMATS.items()
    }
    nearest = min(lacking, key=lambda name: len(lacking[name]))
    if lacking[nearest]:
        raise ValueError(
            f"the observation lacks {', '.join(lacking[nearest])}; it has {', '.join(sorted(flat))}. The "
            f"policy looks through {', '.join(cameras)}; the nearest kind of client is {nearest!r} of "
            f"{', '.join(CLIENT_FORMATS)}"
        )
    return CLIENT_FORMATS[nearest]


def _image(name: str, image: Any) -> np.ndarray:
    """uint8[H, W, 3] of it, whether its colours come first or last, and whether it counts to 255 or to 1."""
    if (
        not isinstance(image, np.ndarray)
        or image.ndim != 3
        or 3 not in (image.shape[0], image.shape[2])
    ):
        raise ValueError(f"{name} is {_kind(image)}, expected an image [H, W, 3] or [3, H, W]")
    image = image if image.shape[2] == 3 else image.transpose(1, 2, 0)
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind != "f" or not ((image >= 0) & (image <= 1)).all():  # NaN is neither
        raise ValueError(f"{name} is {_kind(image)}, expected uint8, or floats from 0 to 1")
    return (255 * image).astype(np.uint8)


def _numbers(name: str, value: Any) -> np.ndarray:
    """float32[n]."""
    many = isinstance(value, list) and all(isinstance(x, int | float) for x in value)
    if not many and not isinstance(value, int | float | np.ndarray) or np.ndim(value) > 1:
        raise ValueError(f"{name} is {_kind(value)}, expected a list of numbers")
    with np.errstate(over="ignore"):  # what is infinite in float32 is refused as such
        return np.atleast_1d(np.asarray(value, np.float32))


def _instruction(flat: Mapping[str, Any], default: str) -> str:
    told = next((flat[name] for name in INSTRUCTION if name in flat), default)
    if not isinstance(told, str) or not told.strip():
        raise ValueError(
            f"{INSTRUCTION[0]} is {told!r:.60}, expected words that say what to do"
            + ("" if isinstance(told, str) else f" (text, not {_kind(told)})")
        )
    return told


def _prefix(actions: Any) -> np.ndarray:
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
        raise ValueError(f"{PREFIX} is {_kind(actions)}, expected actions float[n, A]")
    return actions.astype(np.float32)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is {value!r:.60}, expected a number of steps")
    return value


def _kind(value: Any) -> str:
    return (
        f"{value.dtype}{list(value.shape)}"
        if isinstance(value, np.ndarray)
        else type(value).__name__
    )
