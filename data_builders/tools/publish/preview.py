"""Preview of a dataset as Parquet: some frames with their items, as the Hub's viewer shows them."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_builders.common.read_dataset import (
    frame_number,
    has_items,
    read_images,
    read_items,
    sample_frames,
)
from etcvla.data.adapters import INSTRUCTION
from etcvla.data.rlds import RLDSDataset
from etcvla.etc.items import ITEM_FIELDS

# name -> (type, description). One row is one item; a frame without items is a row of empty texts.
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "image": (
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "JPEG of the frame's first camera.",
    ),
    "episode_id": (pa.string(), "Id of the frame's episode."),
    "step": (pa.int32(), "Number of the frame in its episode, from 0."),
    "instruction": (pa.string(), "Instruction of the robot."),
    "grade": (pa.string(), "scene_grounding, task_oriented, action_aligned, or general."),
    "kind": (pa.string(), "The kind of supervision."),
    "question_type": (pa.string(), "The question type within the kind."),
    "question": (pa.string(), "Question about the image."),
    "answer": (pa.string(), "Canonical answer; locations as <locNNNN>."),
    "source": (pa.string(), "Origin of the answer: oracle, human, or model:<name>."),
    "action": (
        pa.list_(pa.float32()),
        "Action of the robot in the dataset's units; empty without actions.",
    ),
}
_ITEM_COLUMNS = ("grade", *ITEM_FIELDS)


def preview_parquet(dataset: RLDSDataset, num_frames: int) -> bytes:
    """Return a Parquet file of about `num_frames` frames, spread over tasks, episodes and time."""
    # Hugging Face's viewer takes the type of the image column from this metadata.
    viewer = {"info": {"features": {"image": {"_type": "Image"}}}}
    schema = pa.schema(
        [pa.field(name, column_type) for name, (column_type, _) in COLUMNS.items()],
        metadata={"huggingface": json.dumps(viewer)},
    )
    rows = []
    for episode, step in sample_frames(dataset, num_frames):
        rows += _frame_rows(dataset, episode, step)
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), file, compression="zstd")
    return file.getvalue()


def _frame_rows(dataset: RLDSDataset, episode: int, step: int) -> list[dict[str, Any]]:
    metadata = dataset.metadata(episode)
    frame = frame_number(dataset, episode, step)
    names = [name for name in (INSTRUCTION, "action") if name in dataset.features]
    values = dataset.frame(frame, names)
    images = read_images(dataset, frame, metadata)
    row = {
        "image": {"bytes": _encode_jpeg(next(iter(images.values()))), "path": None},
        "episode_id": str(metadata.get("episode_id", episode)),
        "step": step,
        "instruction": values.get(INSTRUCTION, ""),
        "action": values["action"].ravel().tolist() if "action" in values else [],
    }
    items = read_items(dataset, frame) if has_items(dataset) else []
    if not items:
        return [row | dict.fromkeys(_ITEM_COLUMNS, "")]
    rows = []
    for item in items:
        rows.append(row | {name: getattr(item, name) for name in _ITEM_COLUMNS})
    return rows


def _encode_jpeg(image) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=95)
    return file.getvalue()
