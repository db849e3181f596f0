"""Message formats of known clients, and their translation to a policy's observation.

Sources: openpi's libero_policy.py, droid_policy.py, aloha_policy.py and examples; VLABench's
openpi.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etcvla.errors import UserError

PROTOCOL = 1  # version of our additions to openpi's protocol, which itself has no version


@dataclasses.dataclass(frozen=True)
class ClientFormat:
    """Field names of a client's messages. Nested maps are joined by slashes: images/cam_high.

    Attributes:
      cameras: the client's field -> our camera. A camera of the checkpoint that is missing here is
        read from images/<camera>.
      state: fields whose numbers make up the state, in order.
      upright: the client already rotates the images that its simulator renders upside down, so
        the policy must not rotate them again.
    """

    cameras: Mapping[str, str]
    state: tuple[str, ...] = ("observation/state",)
    upright: bool = False

    def image_fields(self, cameras: Sequence[str]) -> dict[str, str]:
        """Return our camera -> the client's field."""
        names = {camera: name for name, camera in self.cameras.items()}
        return {camera: names.get(camera, f"images/{camera}") for camera in cameras}


CLIENT_FORMATS = {
    "own": ClientFormat({}, state=("state",)),
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
INSTRUCTION_FIELDS = ("prompt", "instruction")
# Real-time chunking, see `etcvla.chunks.RealTimeChunks`.
PREFIX = "rtc/prefix"
DELAY = "rtc/delay"


def translate(
    message: Mapping[str, Any],
    cameras: Sequence[str],
    *,
    instruction: str = "",
    rotated_cameras: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the observation for `Policy.infer` from a message of any known client.

    Args:
      cameras: cameras of the policy; other images of the message are ignored.
      instruction: default for clients that send none.
      rotated_cameras: cameras whose images the policy rotates.

    Raises UserError that names the field that is missing or has a wrong type.
    """
    check_protocol("the client", message)
    fields = _flatten(message)
    client = _find_format(fields, cameras)
    images = {}
    for camera, name in client.image_fields(cameras).items():
        image = _to_image(name, fields[name])
        if client.upright and camera in rotated_cameras:
            image = np.rot90(image, 2)
        images[camera] = image
    given = [fields[name] for name in INSTRUCTION_FIELDS if name in fields]
    text = given[0] if given else instruction
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{INSTRUCTION_FIELDS[0]} is {text!r:.60}, expected an instruction as text")
    observation = {
        "images": images,
        "state": np.concatenate([_to_numbers(name, fields[name]) for name in client.state]),
        "instruction": text,
    }
    if PREFIX in fields:
        observation["prefix"] = _to_actions(fields[PREFIX])
        observation["delay"] = _to_delay(fields.get(DELAY))
    return observation


def check_protocol(sender: str, message: Mapping[str, Any]) -> None:
    """Raise UserError if the sender has another version of our additions to the protocol."""
    version = message.get("protocol", PROTOCOL)
    if version != PROTOCOL:
        raise UserError(
            f"{sender} has protocol version {version!r}, expected {PROTOCOL}; update the older side"
        )


def _flatten(message: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    fields = {}
    for name, value in message.items():
        if isinstance(value, dict):
            fields |= _flatten(value, f"{prefix}{name}/")
        else:
            fields[f"{prefix}{name}"] = value
    return fields


def _find_format(fields: Mapping[str, Any], cameras: Sequence[str]) -> ClientFormat:
    """Return the first format whose fields are all present.

    Raises UserError with the missing fields of the format that lacks the fewest.
    """
    missing = {}
    for name, client in CLIENT_FORMATS.items():
        needed = [*client.image_fields(cameras).values(), *client.state]
        missing[name] = [field for field in needed if field not in fields]
    nearest = min(missing, key=lambda name: len(missing[name]))
    if missing[nearest]:
        raise UserError(
            f"the observation lacks {', '.join(missing[nearest])}; it has "
            f"{', '.join(sorted(fields))}. The policy needs the cameras {', '.join(cameras)}; the "
            f"nearest client format is {nearest!r} of {', '.join(CLIENT_FORMATS)}"
        )
    return CLIENT_FORMATS[nearest]


def _to_image(name: str, image: Any) -> np.ndarray:
    """Return uint8[H, W, 3] of an image with channels first or last, in 0..255 or 0..1."""
    shape = np.shape(image)
    if not isinstance(image, np.ndarray) or len(shape) != 3 or 3 not in (shape[0], shape[2]):
        raise UserError(f"{name} is {_describe(image)}, expected an image [H, W, 3] or [3, H, W]")
    if shape[2] != 3:
        image = image.transpose(1, 2, 0)
    if image.dtype == np.uint8:
        return image
    in_range = (image >= 0) & (image <= 1)  # False for NaN
    if image.dtype.kind != "f" or not in_range.all():
        raise UserError(f"{name} is {_describe(image)}, expected uint8, or floats from 0 to 1")
    return (255 * image).astype(np.uint8)


def _to_numbers(name: str, value: Any) -> np.ndarray:
    """Return float32[n] of a number, a list of numbers or an array."""
    if isinstance(value, list):
        numeric = all(isinstance(item, int | float) for item in value)
    else:
        numeric = isinstance(value, int | float | np.ndarray) and np.ndim(value) <= 1
    if not numeric:
        raise UserError(f"{name} is {_describe(value)}, expected a list of numbers")
    with np.errstate(over="ignore"):  # the policy refuses numbers that are infinite in float32
        return np.atleast_1d(np.asarray(value, np.float32))


def _to_actions(actions: Any) -> np.ndarray:
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
        raise UserError(f"{PREFIX} is {_describe(actions)}, expected actions float[n, A]")
    return actions.astype(np.float32)


def _to_delay(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise UserError(f"{DELAY} is {value!r:.60}, expected a number of steps")
    return value


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__
