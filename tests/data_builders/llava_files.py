"""Entries and images in LLaVA's format."""

import io

from PIL import Image


def image_file(color, size=(40, 30), image_format="JPEG", mode="RGB"):
    """Return an image file of one color."""
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, image_format)
    return file.getvalue()


def conversation(*texts):
    """Return alternating turns of human and model."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def entry(name, *texts, image="a.jpg", **fields):
    """Return an entry with a conversation about `image`."""
    return {"id": name, "image": image, "conversations": conversation(*texts), **fields}


def write_images(folder):
    """Write a JPEG, a PNG with transparency, and a truncated file."""
    (folder / "a.jpg").write_bytes(image_file("red"))
    png = image_file((0, 0, 255, 128), (2000, 500), "PNG", "RGBA")
    (folder / "b.png").write_bytes(png)
    (folder / "broken.jpg").write_bytes(image_file("red")[:200])


# Usable and unusable entries.
ENTRIES = [
    entry("a", "<image>\nWhere is the cup?", "[100, 200, 300, 400]"),
    entry("b", "<image>\nWhat is it?", "a cup", "And its color?", "blue", image="b.png"),
    entry("c", "Point to it.\n<image>", "(500, 250)"),
    entry("d", "What?", "that", image="missing.jpg"),
    {"id": "e", "conversations": conversation("How are you?", "well")},
    entry("f", "Compare.", "alike", image=["a.jpg", "b.png"]),
    entry("g", "What?", "that", image="broken.jpg"),
    entry("h", "What?", "that", "And?"),
    entry("i", "<image>", "a cup", "Where is the dish?", "[1, 2, 3000, 4]"),
    {"id": "j", "image": "a.jpg"},
    entry("k", "Trace the path.", "[[0, 1000], [500, 500], [250, 125]]", type="trajectory"),
]
# Entries as the paper describes its dataset: a kind each, and locations as integers.
ETC_ENTRIES = [
    entry(
        "0",
        "<image>\nIs the gripper to the left or to the right of the mug?",
        "left",
        task_type="Spatial Understanding",
    ),
    entry("1", "<image>\nLocate the mug.", "[200, 100, 400, 300]", task_type="goal-description"),
    entry("2", "<image>\nWhere to grasp the mug?", "[500, 250]", task_type="affordance"),
    entry("3", "<image>\nWhat comes next?", "lift the mug", task_type="task_planning"),
    entry(
        "4",
        "<image>\nWhere will the gripper go?",
        "[[500, 500], [250, 500]]",
        task_type="trajectory_prediction",
    ),
    entry(
        "5",
        "<image>\nWhere will the gripper go?",
        "[0, 0, 10, 20, 20, 40, 30, 60, 1000, 1000]",
        task_type="trajectory_prediction",
    ),
    entry("6", "<image>\nHow many?", "two"),
]
