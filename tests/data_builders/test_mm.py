"""Image-text sets of other people: llava's JSON and TFDS sets, whole and damaged, and as a stage's stream."""

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
import tensorflow_datasets as tfds
from PIL import Image

from data_builders.common.build import prepare
from data_builders.common.mm_items import BadEntry, MMConfig, as_jpeg, make_item, split_of, to_loc
from data_builders.mm_llava import entries
from data_builders.mm_llava import mm_llava_dataset_builder as mm_llava
from data_builders.mm_tfds import mm_tfds_dataset_builder as mm_tfds
from etcvla.data.plan import Plan, Stream
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rows import RowBuilder, RowOptions, RowSizes
from etcvla.data.stage_dataset import ANY_KIND, StageDataset
from etcvla.data.tokenizer import Tokenizer
from etcvla.etc.items import ETC_KINDS, format_loc, parse_loc
from etcvla.etc.question_types import answer_type
from etcvla.etc.score import is_correct
from etcvla.train.loop import train
from tests.data.handmade_rlds import write_robot_set
from tests.data_builders.command import run_command


def _file(color, size=(40, 30), question_type="JPEG", mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, question_type)
    return file.getvalue()


def _talk(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


ENTRIES = [
    {
        "id": "a",
        "image": "a.jpg",
        "conversations": _talk("<image>\nWhere is the cup?", "[100, 200, 300, 400]"),
    },
    {
        "id": "b",
        "image": "b.png",
        "conversations": _talk("<image>\nWhat is it?", "a cup", "And its color?", "blue"),
    },
    {"id": "c", "image": "a.jpg", "conversations": _talk("Point to it.\n<image>", "(500, 250)")},
    {"id": "d", "image": "missing.jpg", "conversations": _talk("What?", "that")},
    {"id": "e", "conversations": _talk("How are you?", "well")},
    {"id": "f", "image": ["a.jpg", "b.png"], "conversations": _talk("Compare.", "alike")},
    {"id": "g", "image": "broken.jpg", "conversations": _talk("What?", "that")},
    {"id": "h", "image": "a.jpg", "conversations": _talk("What?", "that", "And?")},
    {
        "id": "i",
        "image": "a.jpg",
        "conversations": _talk("<image>", "a cup", "Where is the dish?", "[1, 2, 3000, 4]"),
    },
    {"id": "j", "image": "a.jpg"},
    {
        "id": "k",
        "image": "a.jpg",
        "type": "trajectory",
        "conversations": _talk("Trace the path.", "[[0, 1000], [500, 500], [250, 125]]"),
    },
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A dataset of ENTRIES and what its build said."""
    folder = tmp_path_factory.mktemp("llava")
    (folder / "a.jpg").write_bytes(_file("red"))
    (folder / "b.png").write_bytes(_file((0, 0, 255, 128), (2000, 500), "PNG", "RGBA"))
    (folder / "broken.jpg").write_bytes(_file("red")[:200])
    (folder / "talks.json").write_text(json.dumps(ENTRIES))
    config = mm_llava.LlavaConfig(
        name="",
        json=str(folder / "talks.json"),
        images=str(folder),
        val=0.0,
        kind_field="type",
        locations="xy1000",
        source="human",
    )
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", said)
        path = prepare(mm_llava.Builder, config, str(folder / "out"))
    return path, said.getvalue(), folder


def _items(dataset):
    return [
        (image, tuple(item))
        for frame in range(dataset.num_frames)
        for values in [
            dataset.frame(frame, ["etc/question_type", "etc/question", "etc/answer", "etc/kind"])
        ]
        for image in [dataset.metadata(frame)["episode_id"].split("/")[0]]
        for item in zip(*values.values(), strict=True)
    ]


def test_every_turn_is_an_item_with_its_locations(built):
    dataset = RLDSDataset(built[0])
    assert built[0].parts[-3:] == ("mm_llava", "talks", "1.0.0")
    assert sorted(_items(dataset)) == [
        ("a", ("locate_box", "Where is the cup?", "<loc0204><loc0102><loc0409><loc0307>", "vqa")),
        ("b", ("vqa", "And its color?", "blue", "vqa")),
        ("b", ("vqa", "What is it?", "a cup", "vqa")),
        ("c", ("locate_point", "Point to it.", "<loc0256><loc0512>", "vqa")),
        (
            "k",
            (
                "trace",
                "Trace the path.",
                "<loc1023><loc0000><loc0512><loc0512><loc0128><loc0256>",
                "trajectory",
            ),
        ),
    ]
    assert {source for datasets in dataset.column("etc/source") for source in datasets} == {"human"}
    assert all(
        answer_type(question_type)
        for question_types in dataset.column("etc/question_type")
        for question_type in question_types
    )


def test_images_are_jpeg_of_bounded_size(built):
    dataset = RLDSDataset(built[0])
    shapes = {
        dataset.frame(i, ["observation/image"])["observation/image"].shape
        for i in range(dataset.num_frames)
    }
    assert shapes == {(30, 40, 3), (160, 640, 3)}


def test_bad_entries_are_counted_by_reason(built):
    said = built[1]
    for reason in (
        "image file missing: 1",
        "no image: 1",
        "several images: 1",
        "the image does not decode: 1",
        "not human and model in turns: 1",
        "no conversation: 1",
        "no turn left: 1",
    ):
        assert f"left out, {reason}" in said
    assert "turn left out, empty question or answer: 1" in said
    assert "turn left out, a location beyond 1000: 1" in said
    assert "episodes: 4" in said
    assert "items: 5" in said


def test_such_a_set_is_a_stream_of_any_kind(built):
    source = StageDataset(RLDSDataset(built[0]), ("image",))
    assert source.candidates(ANY_KIND).tolist() == [0, 1, 2, 3]
    plan = Plan.make(
        [Stream("mm", "talks", ANY_KIND, ((0.0, 1.0),), 0)], batch_size=4, steps=1, seed=0
    )
    tokenizer = Tokenizer.load()
    rows = RowBuilder(
        plan,
        {"talks": source},
        types.SimpleNamespace(tokenizer=tokenizer),
        RowSizes(1, 28, 64, 32, 4, 2, 4),
        RowOptions(prompt="pi0", use_fast=False),
    )
    row = rows(0, 0)
    assert row["image_mask"].tolist() == [True]
    assert row["images"][0].std() == 0 or row["images"].shape == (1, 28, 28, 3)
    text = tokenizer.decode(row["tokens"][row["segment"] == 1].tolist())
    assert any(question in text for _, (_, question, _, _) in _items(source.dataset)), text
    assert row["target"].any()


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("lines", [False, True])
def test_json_streams_in_pieces_of_any_size(tmp_path, monkeypatch, chunk, lines):
    monkeypatch.setattr(entries, "CHUNK", chunk)
    path = tmp_path / "talks.json"
    path.write_text("\n".join(map(json.dumps, ENTRIES)) if lines else json.dumps(ENTRIES, indent=1))
    assert list(entries.read_entries(path)) == ENTRIES


def test_broken_json_names_the_entry(tmp_path):
    path = tmp_path / "talks.json"
    path.write_text(json.dumps(ENTRIES)[:-40])
    with pytest.raises(ValueError, match=rf"talks.json, entry {len(ENTRIES) - 1}: not JSON"):
        list(entries.read_entries(path))
    with pytest.raises(FileNotFoundError, match="no JSON file"):
        list(entries.read_entries(tmp_path / "none.json"))
    path.write_text("[]")
    assert list(entries.read_entries(path)) == []


# As the paper's set is told to be: llava's conversations, a kind each, locations as integers.
COUPLED = [
    {
        "id": "0",
        "image": "a.jpg",
        "task_type": "Spatial Understanding",
        "conversations": _talk(
            "<image>\nIs the gripper to the left or to the right of the mug?", "left"
        ),
    },
    {
        "id": "1",
        "image": "a.jpg",
        "task_type": "goal-description",
        "conversations": _talk("<image>\nLocate the mug.", "[200, 100, 400, 300]"),
    },
    {
        "id": "2",
        "image": "a.jpg",
        "task_type": "affordance",
        "conversations": _talk("<image>\nWhere to grasp the mug?", "[500, 250]"),
    },
    {
        "id": "3",
        "image": "a.jpg",
        "task_type": "task_planning",
        "conversations": _talk("<image>\nWhat comes next?", "lift the mug"),
    },
    {
        "id": "4",
        "image": "a.jpg",
        "task_type": "trajectory_prediction",
        "conversations": _talk("<image>\nWhere will the gripper go?", "[[500, 500], [250, 500]]"),
    },
    {
        "id": "5",
        "image": "a.jpg",
        "task_type": "trajectory_prediction",
        "conversations": _talk(
            "<image>\nWhere will the gripper go?", "[0, 0, 10, 20, 20, 40, 30, 60, 1000, 1000]"
        ),
    },
    {"id": "6", "image": "a.jpg", "conversations": _talk("<image>\nHow many?", "two")},
]


def _build(folder, entries, name, **options):
    (folder / "a.jpg").write_bytes(_file("red"))
    (folder / f"{name}.json").write_text(json.dumps(entries))
    config = mm_llava.LlavaConfig(
        name="", json=str(folder / f"{name}.json"), images=str(folder), val=0.0, **options
    )
    dataset = RLDSDataset(prepare(mm_llava.Builder, config, str(folder / "out")))
    fields = ["etc/grade", "etc/kind", "etc/question_type", "etc/answer"]
    return dataset, {
        dataset.metadata(i)["episode_id"].split("/")[0]: tuple(
            values[0] for values in dataset.frame(i, fields).values()
        )
        for i in range(dataset.num_frames)
    }


def test_etc_of_other_people_keeps_its_kinds(tmp_path):
    dataset, found = _build(tmp_path, COUPLED, "etc", kind_field="task_type", locations="yx1000")
    assert found == {
        "0": ("scene_grounding", "spatial_understanding", "vqa", "left"),
        "1": (
            "scene_grounding",
            "goal_description",
            "locate_box",
            "<loc0204><loc0102><loc0409><loc0307>",
        ),
        "2": ("task_oriented", "affordance", "locate_point", "<loc0512><loc0256>"),
        "3": ("task_oriented", "task_planning", "vqa", "lift the mug"),
        "4": ("action_aligned", "trajectory", "trace", "<loc0512><loc0512><loc0256><loc0512>"),
        "5": (
            "action_aligned",
            "trajectory",
            "trace",
            "<loc0000><loc0000><loc0010><loc0020><loc0020><loc0040>"
            "<loc0030><loc0061><loc1023><loc1023>",
        ),
        "6": ("general", "vqa", "vqa", "two"),
    }
    assert set(dataset.column("etc/source")[0]) == {"unknown"}  # nobody said whose words these are
    for _, _, question_type, answer in found.values():
        assert is_correct(question_type, answer, answer) == 1
    for kind in ETC_KINDS:
        assert len(StageDataset(dataset, ("image",)).candidates(kind)) == 1 + (kind == "trajectory")


def test_a_files_name_says_the_kind_of_what_names_none(tmp_path):
    _, found = _build(
        tmp_path, [COUPLED[0], COUPLED[6]], "task_planning_train", kind_field="task_type"
    )
    assert [found[i][1] for i in "06"] == ["spatial_understanding", "task_planning"]
    _, found = _build(tmp_path, COUPLED[6:], "affordance", kind="counting")
    assert found["6"][:2] == ("general", "counting")


@pytest.fixture(scope="module")
def stage(built, tmp_path_factory):
    """The config file of a stage that noise_samples actions of a robot and conversations about images."""
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


def test_the_plan_shows_an_mm_stream(stage, tmp_path):
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "launch/plan.py", f"--config={stage}", f"--out={tmp_path / 'plan.png'}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # the config's own imports
    assert not done.returncode, done.stderr
    (row,) = (line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["mm"])
    assert row[1:4] == ["talks", "9.1%", "28.6%"] and row[5] == "4"  # of four frames
    assert Image.open(tmp_path / "plan.png").size[0] > 100


def test_a_stage_trains_on_an_mm_stream(stage):
    config = runpy.run_path(str(stage))["get_config"]()
    assert train(config)["steps"] == 3
    lines = list(
        map(json.loads, (pathlib.Path(config.workdir) / "metrics.jsonl").read_text().splitlines())
    )
    assert [line["step"] for line in lines] == [1, 2, 3]
    drawn = [line["mm/loss"] for line in lines if "mm/loss" in line]
    assert drawn and np.isfinite(drawn).all()


def test_rejected_talks_are_left_out_and_the_rest_is_shown(built, tmp_path, capsys):
    path, _, folder = built
    arguments = [
        "data_builders.mm_llava",
        f"--json={folder / 'talks.json'}",
        f"--images={folder}",
        "--val=0",
        f"--out={folder / 'out'}",
        "--kind_field=type",
        "--locations=xy1000",
        "--source=human",
    ]
    run_command(*arguments, f"--gallery={tmp_path / 'page.html'}")
    assert capsys.readouterr().out.strip() == str(path)
    page = (tmp_path / "page.html").read_text()
    keys = json.loads(page.split('id="review-data">')[1].split("</script>")[0])
    bad = next(key for key in keys["keys"] if "blue" in key)
    names = ("episode_id", "step", "question_type", "question", "answer")
    (tmp_path / "review.json").write_text(
        json.dumps(
            {
                "format": "etcvla-review",
                "version": 1,
                "dataset": keys["dataset"],
                "split": keys["split"],
                "items": [dict(zip(names, bad, strict=True)) | {"verdict": "reject"}],
            }
        )
    )
    run_command(*arguments, f"--review={tmp_path / 'review.json'}")
    left = RLDSDataset(capsys.readouterr().out.strip())
    assert sorted(item[2] for _, item in _items(left)) == sorted(
        item[2] for _, item in _items(RLDSDataset(path)) if item[2] != "blue"
    )


@pytest.mark.parametrize(
    ("text", "locations", "expected"),
    [
        ("at [100, 200, 300, 400]", "text", "at [100, 200, 300, 400]"),
        ("at [100, 200, 300, 400]", "yx1000", "at <loc0102><loc0204><loc0307><loc0409>"),
        (
            "[[0, 0, 500, 500], [500, 500, 1000, 1000]]",
            "xy1000",
            "<loc0000><loc0000><loc0512><loc0512><loc0512><loc0512><loc1023><loc1023>",
        ),
        ("<loc0001><loc1023>", "loc", "<loc0001><loc1023>"),
        ("[512, 1023]", "integers", "<loc0512><loc1023>"),
        ("of [1, 2, 3] these", "yx1000", "of [1, 2, 3] these"),
        ("in [3] ways (see 1, 2 and 3)", "xy1000", "in [3] ways (see 1, 2 and 3)"),
    ],
)
def test_locations_become_tokens(text, locations, expected):
    assert to_loc(text, locations) == expected


def test_our_own_integers_come_back_as_they_went():
    values = np.random.default_rng(0).random((5, 2)).astype(np.float32)
    text = to_loc(f"go {format_loc(values.ravel(), 'integers')}", "integers", paths=True)
    assert text == f"go {format_loc(values.ravel())}"
    np.testing.assert_allclose(parse_loc(text.removeprefix("go "), 2), values, atol=1 / 1024)


@pytest.mark.parametrize(
    ("text", "locations", "reason"),
    [
        ("[1, 2, 3, 1001]", "xy1000", "beyond 1000"),
        ("[5, 5, 5, 9]", "xy1000", "empty box"),
        ("[1, 1024]", "integers", "beyond 1023"),
        ("<loc1024>", "loc", "malformed"),
        ("<loc12>", "loc", "malformed"),
    ],
)
def test_impossible_locations_are_left_out(text, locations, reason):
    with pytest.raises(BadEntry, match=reason):
        make_item("where?", text, kind="vqa", locations=locations, source="human")


def test_a_picture_lies_in_one_split_whatever_is_asked():
    pictures = [i.to_bytes(8, "little") for i in range(2000)]
    share = np.mean([split_of(picture, 0.1) == "val" for picture in pictures])
    assert 0.05 < share < 0.15
    assert split_of(b"x", 0.0) == "train"


def test_a_small_jpeg_is_kept_as_it_is():
    data = _file("green")
    assert as_jpeg(data, 40) is data
    assert Image.open(io.BytesIO(as_jpeg(data, 20))).size == (20, 15)
    assert Image.open(io.BytesIO(as_jpeg(_file(7, question_type="PNG", mode="L"), 0))).mode == "RGB"


def test_a_set_without_a_usable_entry_is_refused(tmp_path):
    (tmp_path / "talks.json").write_text(json.dumps(ENTRIES[4:6]))
    config = mm_llava.LlavaConfig(name="", json=str(tmp_path / "talks.json"), images=str(tmp_path))
    with pytest.raises(
        ValueError,
        match="no entry could be used .*left out, no image: 1, left out, several images: 1",
    ):
        prepare(mm_llava.Builder, config, str(tmp_path / "out"))
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="unknown locations 'xy100', did you mean 'xy1000'"):
        MMConfig(name="x", locations="xy100")
    with pytest.raises(ValueError, match=r"val 1.5 must be in \[0, 1\)"):
        MMConfig(name="x", val=1.5)


class ToyCaptions(tfds.core.GeneratorBasedBuilder):
    """An image-text set of TFDS."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "picture": tfds.features.Image(),
                    "asked": tfds.features.Text(),
                    "said": {"answers": tfds.features.Sequence(tfds.features.Text())},
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, answers in enumerate((["a cup", "a mug", "a mug"], ["a dish"], [])):
            yield (
                i,
                {
                    "picture": np.full((8, 9, 3), 40 * i, np.uint8),
                    "asked": f"what is {i}?",
                    "said": {"answers": answers},
                },
            )


def test_a_tfds_set_is_read_by_a_map_of_its_fields(tmp_path, capsys):
    builder = ToyCaptions(data_dir=tmp_path)
    builder.download_and_prepare()
    data = str(builder.data_dir)
    config = mm_tfds.TfdsConfig(
        name="", data=data, image="picture", question="asked", answer="said/answers", val=0.0
    )
    dataset = RLDSDataset(prepare(mm_tfds.Builder, config, str(tmp_path / "out")))
    assert dataset.directory.parts[-3:] == ("mm_tfds", "toy_captions", "1.0.0")
    found = {tuple(item[1:3]) for _, item in _items(dataset)}
    assert found == {("what is 0?", "a mug"), ("what is 1?", "a dish")}
    assert "left out, no answer: 1" in capsys.readouterr().err
    captions = mm_tfds.TfdsConfig(
        name="captions", data=data, image="picture", answer="asked", val=0.0
    )
    dataset = RLDSDataset(prepare(mm_tfds.Builder, captions, str(tmp_path / "out")))
    assert {item[1] for _, item in _items(dataset)} == {"describe the image."}
    wrong = mm_tfds.TfdsConfig(name="wrong", data=data, image="image", val=0.0)
    with pytest.raises(ValueError, match="no feature 'image'; it has asked, picture, said"):
        prepare(mm_tfds.Builder, wrong, str(tmp_path / "out"))
