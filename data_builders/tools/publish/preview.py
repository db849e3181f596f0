"""A few frames with their items as Parquet: what a hub's viewer shows, and anybody's pandas reads."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_builders.tools.gallery import read_items, read_views, spread
from etcvla.data.rlds import RLDSDataset
from etcvla.etc.items import ITEM_FIELDS

# name -> (type, doc): one row an item; a frame without items has one row with empty texts.
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "image": (
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "JPEG of the frame's first camera.",
    ),
    "episode_id": (pa.string(), "The episode that the frame is of."),
    "step": (pa.int32(), "The frame's place in its episode, from 0."),
    "instruction": (pa.string(), "What the robot was told."),
    "grade": (pa.string(), "scene_grounding, task_oriented, action_aligned, or general."),
    "kind": (pa.string(), "The kind of supervision."),
    "question_type": (pa.string(), "The sub-question inside the kind."),
    "question": (pa.string(), "What is asked about the image."),
    "answer": (pa.string(), "Canonical answer; locations as <locNNNN>."),
    "source": (pa.string(), "Who stands behind the answer: oracle, human, or model:<name>."),
    "action": (
        pa.list_(pa.float32()),
        "What the robot did, in the dataset's units; empty without actions.",
    ),
}


def write_preview(path: Path, dataset: RLDSDataset, frames: int) -> int:
    """Writes about `frames` frames, spread over tasks, episodes and time; returns the number of rows."""
    # What tells Hugging Face's viewer that a structure is an image.
    viewer = {"info": {"features": {"image": {"_type": "Image"}}}}
    schema = pa.schema(
        [pa.field(name, kind) for name, (kind, _) in COLUMNS.items()],
        metadata={"huggingface": json.dumps(viewer)},
    )
    rows = [row for place in spread(dataset, frames) for row in _rows(dataset, *place)]
    pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd")
    return len(rows)


def _rows(dataset: RLDSDataset, episode: int, step: int) -> Iterator[dict[str, Any]]:
    about, frame = dataset.metadata(episode), int(dataset.starts[episode]) + step
    values = dataset.frame(
        frame, [name for name in ("language_instruction", "action") if name in dataset.features]
    )
    jpeg, image = io.BytesIO(), next(iter(read_views(dataset, frame, about).values()))
    Image.fromarray(image).save(jpeg, "jpeg", quality=95)
    row = {
        "image": {"bytes": jpeg.getvalue(), "path": None},
        "episode_id": str(about.get("episode_id", episode)),
        "step": step,
        "instruction": values.get("language_instruction", ""),
        "action": values["action"].ravel().tolist() if "action" in values else [],
    }
    texts = ("grade", *ITEM_FIELDS)
    items = read_items(dataset, frame) if "etc/kind" in dataset.features else []
    for item in items:
        yield row | {name: getattr(item, name) for name in texts}
    if not items:
        yield row | dict.fromkeys(texts, "")
