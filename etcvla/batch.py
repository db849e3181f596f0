"""The batch: what the data loader returns and the model reads, in all stages.

One row is one observation (the images of one frame) with one or several segments of text. Up to K
of them are action segments, each with an action chunk:

| field          | dtype[shape]         | meaning                                                 |
|----------------|----------------------|---------------------------------------------------------|
| images         | uint8[B, C, H, W, 3] | images of C cameras                                     |
| image_mask     | bool[B, C]           | the camera is present                                   |
| tokens         | int32[B, L]          | the text of all segments, concatenated                  |
| segment        | int32[B, L]          | number of the token's segment from 1 on; 0: padding     |
| target         | bool[B, L]           | the token is predicted (causal); else it is a prompt    |
|                |                      | token (bidirectional within its segment)                |
| weight         | float32[B, L]        | loss weight of the token                                |
| action_segment | int32[B, K]          | segment whose prompt the expert reads; 0: no action     |
| state          | float32[B, Q]        | normalized proprioception                               |
| actions        | float32[B, K, P, A]  | normalized action chunks                                |
| action_mask    | bool[B, K, P, A]     | false on padded action dimensions, on steps past the    |
|                |                      | end of the episode, and where there is no chunk         |
| action_weight  | float32[B, K]        | loss weight of each unmasked value of the chunk         |
| stream         | int32[B, L]          | index of the token's stream in the mixture, for metrics |

Axes: B batch, C cameras, H image height, W image width, L text length, Q state width, K action
chunks of a row, P action horizon, A action width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from etcvla.errors import UserError

SCHEMA: dict[str, tuple[type, str]] = {
    "images": (np.uint8, "BCHW3"),
    "image_mask": (np.bool_, "BC"),
    "tokens": (np.int32, "BL"),
    "segment": (np.int32, "BL"),
    "target": (np.bool_, "BL"),
    "weight": (np.float32, "BL"),
    "action_segment": (np.int32, "BK"),
    "state": (np.float32, "BQ"),
    "actions": (np.float32, "BKPA"),
    "action_mask": (np.bool_, "BKPA"),
    "action_weight": (np.float32, "BK"),
    "stream": (np.int32, "BL"),
}


def zeros(**sizes: int) -> dict[str, np.ndarray]:
    """Return a batch of zeros.

    Args:
      **sizes: sizes by axis letter, e.g. zeros(B=2, C=1, H=96, W=96, L=64, Q=4, P=10, A=4). K is 1
        by default.
    """
    sizes = {"K": 1, "3": 3, **sizes}
    batch = {}
    for name, (dtype, axes) in SCHEMA.items():
        batch[name] = np.zeros([sizes[axis] for axis in axes], dtype)
    return batch


def validate(batch: Mapping[str, np.ndarray], **sizes: int) -> None:
    """Check the fields of a batch against the schema and the sizes (by axis letter).

    Raises: UserError naming the field that is missing or whose dtype, rank or size is wrong.
    """
    sizes["3"] = 3
    for name, (dtype, axes) in SCHEMA.items():
        if name not in batch:
            raise UserError(f"batch has no field {name!r}")
        value = batch[name]
        if value.dtype != dtype or value.ndim != len(axes):
            raise UserError(
                f"batch[{name!r}] is {value.dtype}{list(value.shape)}, expected "
                f"{np.dtype(dtype).name}[{', '.join(axes)}]"
            )
        for axis, size in zip(axes, value.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise UserError(
                    f"batch[{name!r}]: axis {axis} has size {size}, expected {sizes[axis]}"
                )
