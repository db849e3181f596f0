"""The shapes builder: a small dataset is built once by the command, and read back by TFDS."""

import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_builders.common.build import prepare
from data_builders.common.progress import show_progress
from data_builders.shapes_vqa.episodes import ShapesJob, make_image
from data_builders.shapes_vqa.shapes_vqa_dataset_builder import Builder, ShapesConfig
from etcvla.errors import UserError
from etcvla.etc.items import GENERAL, ITEM_FIELDS

CONFIG = ShapesConfig(episodes=12, val_episodes=5, image_size=48)
COUNTS = {"train": 12, "val": 5}


def run(*arguments):
    command = [sys.executable, "-m", "data_builders.shapes_vqa", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(folder of datasets, finished process)."""
    out = tmp_path_factory.mktemp("datasets")
    done = run(
        f"--out={out}",
        "--episodes=12",
        "--val_episodes=5",
        "--image_size=48",
        f"--gallery={out}/page/shapes.html",
    )
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.fixture(scope="module")
def episodes(built):
    """split -> episode id -> steps, with images as JPEG files."""
    builder = tfds.builder_from_directory(built[1].stdout.strip())
    decoders = {"steps": {"observation": {"image": tfds.decode.SkipDecoding()}}}
    episodes = {}
    for split in COUNTS:
        episodes[split] = {}
        for episode in builder.as_dataset(split, decoders=decoders):
            name = episode["episode_metadata"]["episode_id"].numpy().decode()
            episodes[split][name] = list(episode["steps"].as_numpy_iterator())
    return episodes


@pytest.mark.parametrize("split", COUNTS)
def test_every_image_is_an_episode_of_one_step(episodes, split):
    assert len(episodes[split]) == COUNTS[split]
    assert all(len(steps) == 1 for steps in episodes[split].values())


@pytest.mark.parametrize("split", COUNTS)
def test_images_and_items_on_disk_are_those_that_were_made(episodes, split):
    for index in range(COUNTS[split]):
        job = ShapesJob(split, index, seed=0, image_size=48)
        made = make_image(job)
        (step,) = episodes[split][job.episode_id]
        for field in ITEM_FIELDS:
            stored = [text.decode() for text in step["etc"][field]]
            assert stored == [getattr(item, field) for item in made.items]
        assert {text.decode() for text in step["etc"]["grade"]} == {GENERAL}
        image = Image.open(io.BytesIO(step["observation"]["image"]))
        decoded = np.asarray(image, np.float32)
        assert decoded.shape == (48, 48, 3)
        assert np.abs(decoded - made.image).mean() < 8


def test_splits_share_no_image(episodes):
    images = {}
    for split, found in episodes.items():
        images[split] = {steps[0]["observation"]["image"] for steps in found.values()}
    assert len(images["train"]) == 12
    assert not images["train"] & images["val"]


def test_image_depends_on_seed_split_and_index():
    def _pixels(split, index, seed):
        return make_image(ShapesJob(split, index, seed, image_size=32)).image.tobytes()

    assert _pixels("train", 3, 0) == _pixels("train", 3, 0)
    different = {
        _pixels("train", 3, 0),
        _pixels("train", 4, 0),
        _pixels("val", 3, 0),
        _pixels("train", 3, 1),
    }
    assert len(different) == 4


def test_command_shows_progress_and_prints_the_path(built):
    out, done = built
    assert done.stdout.strip() == f"{out}/shapes_vqa/12ep_5val_48px/1.0.0"
    assert "shapes_vqa train: 12/12" in done.stderr
    assert "s left" in done.stderr


def test_gallery_shows_the_items(built):
    page = (built[0] / "page" / "shapes.html").read_text()
    items = make_image(ShapesJob("train", 0, seed=0, image_size=48)).items
    assert page.count("<article>") == 12
    assert "shapes_0_train_0000011" in page
    assert all(item.question.split("<")[0] in page for item in items)


def test_second_run_builds_nothing(built, monkeypatch, capsys):
    monkeypatch.setattr(Builder, "_generate_examples", lambda *_: pytest.fail("built again"))
    path = prepare(Builder, CONFIG, str(built[0]))
    assert str(path) == built[1].stdout.strip()
    assert "already built" in capsys.readouterr().err


def test_system_error_leaves_no_dataset(tmp_path, monkeypatch):
    def _fail(job):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Builder, "make_picture", staticmethod(_fail))
    with pytest.raises(UserError, match=r"building .*shapes_vqa.* failed.*: .*No space left"):
        prepare(Builder, CONFIG, str(tmp_path))
    assert not list(tmp_path.rglob("*.tfrecord*"))
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_other_errors_keep_their_type(tmp_path, monkeypatch):
    def _fail(job):
        raise RuntimeError("shapes_vqa train 0: 'yes', the scene says 'no'")

    monkeypatch.setattr(Builder, "make_picture", staticmethod(_fail))
    with pytest.raises(RuntimeError, match="the scene says"):
        prepare(Builder, CONFIG, str(tmp_path))


def test_wrong_item_stops_the_build(monkeypatch):
    monkeypatch.setattr("etcvla.etc.shapes.check", lambda item, scene: "wrong")
    with pytest.raises(RuntimeError, match="shapes_vqa train 7: wrong"):
        make_image(ShapesJob("train", 7, seed=0, image_size=32))


@pytest.mark.parametrize(
    ("field", "value"),
    [("episodes", 0), ("val_episodes", 0), ("image_size", 16), ("seed", -1)],
)
def test_too_small_number_is_an_error(field, value):
    with pytest.raises(UserError, match=f"{field} must be at least"):
        ShapesConfig(**{field: value})


def test_different_configs_have_different_names():
    assert ShapesConfig().name == "default"
    assert ShapesConfig(episodes=10, seed=3).name == "10ep_seed3"
    assert Builder.BUILDER_CONFIGS[0] == ShapesConfig()


def test_default_config_can_be_prepared(tmp_path, monkeypatch):
    """TFDS rejects a config object that has the name of a registered config."""
    prepared = []
    monkeypatch.setattr(
        Builder, "download_and_prepare", lambda self, **_: prepared.append(self.builder_config)
    )
    monkeypatch.setattr(tfds.core.DatasetInfo, "splits", {})
    prepare(Builder, ShapesConfig(), str(tmp_path))
    assert prepared == [ShapesConfig()]


def test_command_reports_a_wrong_flag(tmp_path):
    done = run(f"--out={tmp_path}", "--image_size=8")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "error: image_size must be at least 32, got 8"


def test_progress_yields_all_items(capsys):
    assert list(show_progress("abc", total=3, label="letters", interval=0)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    counts = [line.split(",")[0] for line in lines]
    assert counts == ["letters: 1/3", "letters: 2/3", "letters: 3/3"]
    assert lines[-1].endswith("/s, 0 s left")
