"""Importer of LLaVA's JSON, and its datasets as a stream of a training stage."""

import io
import json
import os
import pathlib
import runpy
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from data_builders.common.build import prepare
from data_builders.common.read_dataset import read_items
from data_builders.mm_llava import entries
from data_builders.mm_llava.mm_llava_dataset_builder import Builder, LlavaConfig
from etcvla.data.plan import Plan, Stream
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rows import RowBuilder, RowOptions, RowSizes
from etcvla.data.stage_dataset import ANY_KIND, StageDataset
from etcvla.data.tokenizer import Tokenizer
from etcvla.errors import UserError
from etcvla.etc.items import ETC_KINDS
from etcvla.etc.question_types import answer_type
from etcvla.etc.review import ItemKey
from etcvla.etc.score import is_correct
from etcvla.train.loop import train
from tests.data.handmade_rlds import write_robot_set
from tests.data_builders.command import run_command
from tests.data_builders.gallery_page import read_review_data, write_review
from tests.data_builders.llava_files import ENTRIES, ETC_ENTRIES, image_file, write_images


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(version folder, log of the build, folder of the source) of a dataset of ENTRIES."""
    folder = tmp_path_factory.mktemp("llava")
    write_images(folder)
    (folder / "talks.json").write_text(json.dumps(ENTRIES))
    config = LlavaConfig(
        data=str(folder / "talks.json"),
        images=str(folder),
        held_out=0.0,
        kind_field="type",
        locations="xy1000",
        source="human",
    )
    log = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", log)
        path = prepare(Builder, config, str(folder / "out"))
    return path, log.getvalue(), folder


def items_by_entry(dataset):
    """Return (id of the entry, item) of all items, sorted."""
    items = []
    for frame in range(dataset.num_frames):
        name = dataset.metadata(frame)["episode_id"].split("/")[0]
        items += [(name, item) for item in read_items(dataset, frame)]
    return sorted(items, key=lambda pair: (pair[0], pair[1].question))


def test_every_turn_is_an_item_with_location_tokens(built):
    assert built[0].parts[-3:] == ("mm_llava", "talks", "1.0.0")
    found = []
    for name, item in items_by_entry(RLDSDataset(built[0])):
        found.append((name, item.kind, item.question_type, item.question, item.answer))
        assert item.source == "human"
        assert answer_type(item.question_type)
    box = "<loc0204><loc0102><loc0409><loc0307>"
    path = "<loc1023><loc0000><loc0512><loc0512><loc0128><loc0256>"
    assert found == [
        ("a", "vqa", "locate_box", "Where is the cup?", box),
        ("b", "vqa", "vqa", "And its color?", "blue"),
        ("b", "vqa", "vqa", "What is it?", "a cup"),
        ("c", "vqa", "locate_point", "Point to it.", "<loc0256><loc0512>"),
        ("k", "trajectory", "trace", "Trace the path.", path),
    ]


def test_images_are_jpeg_of_bounded_size(built):
    dataset = RLDSDataset(built[0])
    shapes = set()
    for frame in range(dataset.num_frames):
        shapes.add(dataset.frame(frame, ["observation/image"])["observation/image"].shape)
    assert shapes == {(30, 40, 3), (160, 640, 3)}


@pytest.mark.parametrize(
    "line",
    [
        "dropped entry: image file missing: 1",
        "dropped entry: no image: 1",
        "dropped entry: several images: 1",
        "dropped entry: the image does not decode: 1",
        "dropped entry: turns do not alternate between human and model: 1",
        "dropped entry: no conversation: 1",
        "dropped entry: no usable turn: 1",
        "dropped turn: empty question or answer: 1",
        "dropped turn: a location beyond 1000: 1",
        "episodes: 4",
        "items: 5",
    ],
)
def test_log_counts_unusable_entries_by_reason(built, line):
    assert line in built[1]


def test_metadata_counts_unusable_entries(built):
    metadata = json.loads((built[0] / "metadata.json").read_text())
    assert metadata["dropped_items"]["entry: several images"] == 1
    assert sum(metadata["dropped_items"].values()) == 9


def test_dataset_is_a_stream_of_any_kind(built):
    dataset = StageDataset(RLDSDataset(built[0]), ("image",))
    assert dataset.candidates(ANY_KIND).tolist() == [0, 1, 2, 3]
    stream = Stream("mm", "talks", ANY_KIND, ((0.0, 1.0),), 0)
    plan = Plan.make([stream], batch_size=4, steps=1, seed=0)
    tokenizer = Tokenizer.load()
    rows = RowBuilder(
        plan,
        {"talks": dataset},
        types.SimpleNamespace(tokenizer=tokenizer),
        RowSizes(1, 28, 64, 32, 4, 2, 4),
        RowOptions(prompt="pi0", use_fast=False),
    )
    row = rows(0, 0)
    assert row["image_mask"].tolist() == [True]
    assert row["images"].shape == (1, 28, 28, 3)
    text = tokenizer.decode(row["tokens"][row["segment"] == 1].tolist())
    assert any(item.question in text for _, item in items_by_entry(dataset.dataset)), text
    assert row["target"].any()


@pytest.mark.parametrize("read_size", [1, 7, 1 << 20])
@pytest.mark.parametrize("lines", [False, True])
def test_json_is_read_in_pieces_of_any_size(tmp_path, monkeypatch, read_size, lines):
    monkeypatch.setattr(entries, "READ_SIZE", read_size)
    path = tmp_path / "talks.json"
    if lines:
        path.write_text("\n".join(json.dumps(entry) for entry in ENTRIES))
    else:
        path.write_text(json.dumps(ENTRIES, indent=1))
    assert list(entries.read_json_values(path)) == ENTRIES


def test_broken_json_error_names_the_entry(tmp_path):
    path = tmp_path / "talks.json"
    path.write_text(json.dumps(ENTRIES)[:-40])
    with pytest.raises(UserError, match=rf"talks.json, entry {len(ENTRIES) - 1}: not JSON"):
        list(entries.read_json_values(path))
    with pytest.raises(UserError, match="no JSON file"):
        list(entries.read_json_values(tmp_path / "none.json"))


def test_empty_list_has_no_entries(tmp_path):
    path = tmp_path / "talks.json"
    path.write_text("[]")
    assert list(entries.read_json_values(path)) == []


def build_entries(folder, file_entries, name, **fields):
    """Build a dataset, and return it with its first items by the entry's id."""
    (folder / "a.jpg").write_bytes(image_file("red"))
    (folder / f"{name}.json").write_text(json.dumps(file_entries))
    config = LlavaConfig(
        data=str(folder / f"{name}.json"), images=str(folder), held_out=0.0, **fields
    )
    dataset = RLDSDataset(prepare(Builder, config, str(folder / "out")))
    return dataset, dict(items_by_entry(dataset))


def test_etc_entries_keep_their_kinds(tmp_path):
    dataset, items = build_entries(
        tmp_path, ETC_ENTRIES, "etc", kind_field="task_type", locations="yx1000"
    )
    found = {}
    for name, item in items.items():
        found[name] = (item.grade, item.kind, item.question_type, item.answer)
        assert is_correct(item.question_type, item.answer, item.answer)
        assert item.source == "unknown"
    box = "<loc0204><loc0102><loc0409><loc0307>"
    short_path = "<loc0512><loc0512><loc0256><loc0512>"
    long_path = (
        "<loc0000><loc0000><loc0010><loc0020><loc0020><loc0040><loc0030><loc0061><loc1023><loc1023>"
    )
    assert found == {
        "0": ("scene_grounding", "spatial_understanding", "vqa", "left"),
        "1": ("scene_grounding", "goal_description", "locate_box", box),
        "2": ("task_oriented", "affordance", "locate_point", "<loc0512><loc0256>"),
        "3": ("task_oriented", "task_planning", "vqa", "lift the mug"),
        "4": ("action_aligned", "trajectory", "trace", short_path),
        "5": ("action_aligned", "trajectory", "trace", long_path),
        "6": ("general", "vqa", "vqa", "two"),
    }
    stage_dataset = StageDataset(dataset, ("image",))
    for kind in ETC_KINDS:
        count = 2 if kind == "trajectory" else 1
        assert len(stage_dataset.candidates(kind)) == count


def test_file_name_gives_the_kind_of_entries_without_one(tmp_path):
    file_entries = [ETC_ENTRIES[0], ETC_ENTRIES[6]]
    name = "task_planning_train"
    _, items = build_entries(tmp_path, file_entries, name, kind_field="task_type")
    assert items["0"].kind == "spatial_understanding"
    assert items["6"].kind == "task_planning"


def test_kind_flag_overrides_the_file_name(tmp_path):
    _, items = build_entries(tmp_path, ETC_ENTRIES[6:], "affordance", kind="counting")
    assert items["6"].kind == "counting"
    assert items["6"].grade == "general"


def test_dataset_without_usable_entry_is_an_error(tmp_path):
    (tmp_path / "talks.json").write_text(json.dumps(ENTRIES[4:6]))
    config = LlavaConfig(data=str(tmp_path / "talks.json"), images=str(tmp_path))
    message = "no entry can be used .*entry: no image: 1, dropped entry: several images: 1"
    with pytest.raises(UserError, match=message):
        prepare(Builder, config, str(tmp_path / "out"))
    assert not list(tmp_path.rglob("dataset_info.json"))


@pytest.fixture(scope="module")
def stage(built, tmp_path_factory):
    """Config file of a stage with robot actions and conversations about images."""
    folder = tmp_path_factory.mktemp("stage")
    write_robot_set(folder / "robot")
    path = folder / "config.py"
    path.write_text(f"""
from pathlib import Path
from configs import common
from tests.train.nano import nano_config

def get_config():
    c = nano_config(Path({str(folder / "robot")!r}), Path({str(folder / "run")!r}), steps=3)
    with c.unlocked():
        c.datasets.talks = common.dataset({str(built[0])!r}, ("image",))
        c.streams.mm = common.stream("talks", "any", ((0.0, 0.1), (1.0, 0.4)), extra_segments=1)
        c.extra_segment_weights.vqa = 1.0
    return c
""")
    return path


def test_plan_shows_the_stream(stage, tmp_path):
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "launch/plan.py", f"--config={stage}"]
    command.append(f"--out={tmp_path / 'plan.png'}")
    environment = os.environ | {"PYTHONPATH": str(root)}  # for the imports of the config
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, env=environment
    )
    assert not done.returncode, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    (row,) = [cells for cells in rows if cells[:1] == ["mm"]]
    assert row[1:5] == ["talks", "9.1", ">", "28.6"]
    assert row[-2] == "4"  # frames
    assert Image.open(tmp_path / "plan.png").size[0] > 100


def test_stage_trains_on_the_stream(stage):
    config = runpy.run_path(str(stage))["get_config"]()
    assert train(config)["steps"] == 3
    metrics = (pathlib.Path(config.workdir) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in metrics.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    losses = [line["mm/loss"] for line in lines if "mm/loss" in line]
    assert losses
    assert np.isfinite(losses).all()


def test_review_drops_rejected_items_and_keeps_the_others(built, tmp_path, capsys):
    path, _, folder = built
    arguments = [
        "data_builders.mm_llava",
        f"--data={folder / 'talks.json'}",
        f"--images={folder}",
        "--held_out=0",
        f"--out={folder / 'out'}",
        "--kind_field=type",
        "--locations=xy1000",
        "--source=human",
    ]
    run_command(*arguments, f"--gallery={tmp_path / 'page.html'}")
    assert capsys.readouterr().out.strip() == str(path)
    data = read_review_data(tmp_path / "page.html")
    rejected = next(key for key in data["keys"] if "blue" in key)
    verdicts = {ItemKey(*rejected): "reject"}
    review = write_review(tmp_path / "review.json", verdicts, data["dataset"])
    run_command(*arguments, f"--review={review}")
    remaining = items_by_entry(RLDSDataset(capsys.readouterr().out.strip()))
    expected = items_by_entry(RLDSDataset(path))
    assert remaining == [pair for pair in expected if pair[1].answer != "blue"]
