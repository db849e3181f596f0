"""The shapes builder: a small corpus is built once by the command line, and read back by TFDS."""

import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_builders.common import build
from data_builders.shapes_vqa.shapes_vqa_dataset_builder import Builder, ShapesConfig, make_image
from etcvla.etc.items import GENERAL

CONFIG = ShapesConfig(episodes=12, val_episodes=5, image_size=48)


def _run(*arguments: str) -> subprocess.CompletedProcess:
    command_line = [sys.executable, "-m", "data_builders.shapes_vqa", *arguments]
    return subprocess.run(command_line, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("datasets")
    run = _run(
        f"--out={out}",
        "--episodes=12",
        "--val_episodes=5",
        "--image_size=48",
        f"--gallery={out}/page/shapes.html",
    )
    assert run.returncode == 0, run.stderr
    return out, run


@pytest.fixture(scope="module")
def episodes(built):
    builder = tfds.builder_from_directory(built[1].stdout.strip())
    encoded = {"steps": {"observation": {"image": tfds.decode.SkipDecoding()}}}
    read = {}
    for split in ("train", "val"):
        read[split] = []
        for episode in builder.as_dataset(split, decoders=encoded):
            name = episode["episode_metadata"]["episode_id"].numpy().decode()
            read[split].append((name, list(episode["steps"].as_numpy_iterator())))
    return read


def test_every_image_is_a_one_step_episode(episodes):
    assert {split: len(found) for split, found in episodes.items()} == {"train": 12, "val": 5}
    assert all(len(steps) == 1 for found in episodes.values() for _, steps in found)


def test_what_is_on_disk_is_what_was_made(episodes):
    for split, found in episodes.items():
        made = {
            name: (image, items)
            for name, image, _, items in (
                make_image(split, i, seed=0, image_size=48) for i in range(getattr(CONFIG, split))
            )
        }
        assert {name for name, _ in found} == set(made)
        for name, (step,) in found:
            image, items = made[name]
            etc = step["etc"]
            for field in ("kind", "question_type", "question", "answer", "source"):
                assert [text.decode() for text in etc[field]] == [
                    getattr(item, field) for item in items
                ]
            assert {text.decode() for text in etc["grade"]} == {GENERAL}
            decoded = np.asarray(Image.open(io.BytesIO(step["observation"]["image"])), np.float32)
            assert decoded.shape == (48, 48, 3)
            assert np.abs(decoded - image).mean() < 8


def test_splits_share_no_image(episodes):
    images = {
        split: {steps[0]["observation"]["image"] for _, steps in found}
        for split, found in episodes.items()
    }
    assert len(images["train"]) == 12
    assert not images["train"] & images["val"]


def test_images_depend_on_seed_split_and_index_alone():
    def pixels(split, index, seed):
        return make_image(split, index, seed=seed, image_size=32)[1].tobytes()

    assert pixels("train", 3, 0) == pixels("train", 3, 0)
    assert (
        len(
            {
                pixels("train", 3, 0),
                pixels("train", 4, 0),
                pixels("val", 3, 0),
                pixels("train", 3, 1),
            }
        )
        == 4
    )


def test_the_command_shows_progress_and_prints_the_path_alone(built):
    out, run = built
    assert run.stdout.strip() == f"{out}/shapes_vqa/12ep_5val_48px/1.0.0"
    assert "shapes_vqa train: 12/12" in run.stderr
    assert "s left" in run.stderr


def test_the_gallery_shows_the_items(built):
    page = (built[0] / "page" / "shapes.html").read_text()
    _, _, _, items = make_image("train", 0, seed=0, image_size=48)
    assert page.count("<article>") == 12
    assert "shapes_0_train_0000011" in page
    assert all(item.question.split("<")[0] in page for item in items)


def test_a_second_run_builds_nothing(built, monkeypatch, capsys):
    monkeypatch.setattr(Builder, "_generate_examples", lambda *_: pytest.fail("built again"))
    path = build.prepare(Builder, CONFIG, str(built[0]))
    assert str(path) == built[1].stdout.strip()
    assert "already built" in capsys.readouterr().err


def test_a_build_that_breaks_off_leaves_no_dataset(tmp_path, monkeypatch):
    def breaks_off(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        "data_builders.shapes_vqa.shapes_vqa_dataset_builder.make_image", breaks_off
    )
    with pytest.raises(OSError, match=r"building .*shapes_vqa.* failed.*: .*No space left"):
        build.prepare(Builder, CONFIG, str(tmp_path))
    assert not list(tmp_path.rglob("*.tfrecord*"))
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_other_errors_keep_their_type(tmp_path, monkeypatch):
    def wrong(*_, **__):
        raise RuntimeError("shapes_vqa train 0: 'yes', the scene says 'no'")

    monkeypatch.setattr("data_builders.shapes_vqa.shapes_vqa_dataset_builder.make_image", wrong)
    with pytest.raises(RuntimeError, match="the scene says"):
        build.prepare(Builder, CONFIG, str(tmp_path))


def test_an_item_that_does_not_follow_stops_the_build(monkeypatch):
    monkeypatch.setattr("etcvla.etc.shapes.check", lambda item, scene: "wrong")
    with pytest.raises(RuntimeError, match="shapes_vqa train 7: wrong"):
        make_image("train", 7, seed=0, image_size=32)


@pytest.mark.parametrize(
    ("field", "value"), [("train", 0), ("val", 0), ("image_size", 16), ("seed", -1)]
)
def test_a_number_that_is_too_small_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be at least"):
        ShapesConfig(**{field: value})


def test_names_tell_configs_apart():
    assert ShapesConfig().name == "default"
    assert ShapesConfig(train=10, seed=3).name == "train10_seed3"
    assert Builder.BUILDER_CONFIGS[0] == ShapesConfig()


def test_the_default_config_can_be_prepared(tmp_path, monkeypatch):
    """TFDS refuses a config object that bears the name of a registered one."""
    prepared = []
    monkeypatch.setattr(
        Builder, "download_and_prepare", lambda self, **_: prepared.append(self.builder_config)
    )
    monkeypatch.setattr(tfds.core.DatasetInfo, "splits", {})
    build.prepare(Builder, ShapesConfig(), str(tmp_path))
    assert prepared == [ShapesConfig()]


def test_the_command_names_a_bad_flag(tmp_path):
    run = _run(f"--out={tmp_path}", "--image_size=8")
    assert run.returncode == 1
    assert (
        run.stderr.strip().splitlines()[-1]
        == "error: shapes_vqa: image_size must be at least 32, got 8"
    )


def test_progress_counts_and_passes_on(capsys):
    assert list(show_progress("abc", total=3, label="letters", interval=0)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "letters: 1/3",
        "letters: 2/3",
        "letters: 3/3",
    ]
    assert lines[-1].endswith("/s, 0 s left")
