"""The batch: what the loader emits and the model reads, once and for all stages.

One row is one look (the images of one frame) with several segments on it (segments of text, and the action chunk):

| field          | dtype[shape]         | meaning                                                                   |
|----------------|----------------------|---------------------------------------------------------------------------|
| images         | uint8[B, C, H, W, 3] | C cameras                                                                 |
| image_mask     | bool[B, C]           | the camera is present                                                     |
| tokens         | int32[B, L]          | all segments' text, one after another                                     |
| segment        | int32[B, L]          | 0 padding, 1.. which segment                                              |
| target         | bool[B, L]           | the token is predicted (causal); else prompt (both ways inside a segment) |
| weight         | float32[B, L]        | loss weight of the token                                                  |
| action_segment | int32[B]             | the segment whose prompt the expert reads; 0 where the row has no action  |
| state          | float32[B, Q]        | normalised proprioception                                                 |
| actions        | float32[B, P, A]     | normalised chunk                                                          |
| action_mask    | bool[B, P, A]        | false on padded widths and on steps past the episode's end                |
| stream         | int32[B, L]          | the index of the stream that each token serves, for metrics               |

Axes: B rows, C cameras, H W pixels, L text length, Q state width, P action horizon, A action width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SCHEMA: dict[str, tuple[type, str]] = {
    "images": (np.uint8, "BCHW3"),
    "image_mask": (np.bool_, "BC"),
    "tokens": (np.int32, "BL"),
    "segment": (np.int32, "BL"),
    "target": (np.bool_, "BL"),
    "weight": (np.float32, "BL"),
    "action_segment": (np.int32, "B"),
    "state": (np.float32, "BQ"),
    "actions": (np.float32, "BPA"),
    "action_mask": (np.bool_, "BPA"),
    "stream": (np.int32, "BL"),
}


def zeros(**sizes: int) -> dict[str, np.ndarray]:
    """An empty batch; sizes by axis letter, e.g. zeros(B=2, C=1, H=96, W=96, L=64, Q=4, P=10, A=4)."""
    sizes["3"] = 3
    return {
        name: np.zeros([sizes[axis] for axis in axes], dtype)
        for name, (dtype, axes) in SCHEMA.items()
    }


def validate(batch: Mapping[str, np.ndarray], **sizes: int) -> None:
    """Raises ValueError naming the field whose dtype, rank or size is not the schema's; sizes by axis letter."""
    sizes["3"] = 3
    for name, (dtype, axes) in SCHEMA.items():
        if name not in batch:
            raise ValueError(f"batch has no field {name!r}")
        value = batch[name]
        if value.dtype != dtype or value.ndim != len(axes):
            raise ValueError(
                f"batch[{name!r}] is {value.dtype}{list(value.shape)}, expected "
                f"{np.dtype(dtype).name}[{', '.join(axes)}]"
            )
        for axis, size in zip(axes, value.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(
                    f"batch[{name!r}]: axis {axis} has size {size}, expected {sizes[axis]}"
                )
