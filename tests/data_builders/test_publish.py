"""What goes with a dataset agrees with it, other people's tools read it, and reviews leave out what was rejected."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from data_builders.add_etc.output import new_features
from data_builders.common.build import prepare
from data_builders.libero_etc import libero_etc_dataset_builder as libero
from data_builders.metaworld_etc import metaworld_etc_dataset_builder as metaworld
from data_builders.mm_llava import mm_llava_dataset_builder as mm_llava
from data_builders.mm_tfds import mm_tfds_dataset_builder as mm_tfds
from data_builders.shapes_vqa import shapes_vqa_dataset_builder as shapes_vqa
from data_builders.tools.gallery import dataset_gallery, read_items, upright
from data_builders.tools.publish.__main__ import main, publish
from data_builders.tools.publish.summary import DatasetFacts
from data_builders.tools.review import apply_review
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rlds_layout import read_features
from etcvla.etc.review import ItemKey
from tests.data_builders.tiny_robot import STEPS, Builder, TinyConfig

NAME = "tiny_robot/tiny/1.0.0"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return prepare(Builder, TinyConfig(), str(tmp_path_factory.mktemp("datasets")))


@pytest.fixture(scope="module")
def published(built, tmp_path_factory):
    """A copy, for the other tests' sake."""
    copy = tmp_path_factory.mktemp("published") / "1.0.0"
    shutil.copytree(built, copy)
    made = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(
        json.dumps(made | {"found": {"lift": {"tries": 4, "kept": 3}}})
    )
    assert publish(copy, frames=5) == copy
    return copy


def records(directory, split):
    (file,) = directory.glob(f"*-{split}.tfrecord*")
    return list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())


def all_items(directory, split="train"):
    dataset = RLDSDataset(directory, split)
    return [
        ItemKey(
            dataset.metadata(episode)["episode_id"],
            step,
            item.question_type,
            item.question,
            item.answer,
        )
        for episode in range(dataset.num_episodes)
        for step in range(STEPS)
        for item in read_items(dataset, int(dataset.starts[episode]) + step)
    ]


def write_review(path, keys, dataset=NAME):
    items = [key._asdict() | {"verdict": verdict} for key, verdict in keys.items()]
    path.write_text(
        json.dumps(
            {
                "format": "etcvla-review",
                "version": 1,
                "dataset": dataset,
                "split": "train",
                "items": items,
            }
        )
    )
    return path


BUILDERS = {
    "meta-world": lambda data: metaworld.Builder(config="source", data_dir=data),
    "meta-world, other looks": lambda data: metaworld.Builder(
        config=metaworld.MetaWorldConfig(tasks=("reach",), conditions=("clutter",)), data_dir=data
    ),
    "libero": lambda data: libero.Builder(config="libero_object_rlds", data_dir=data),
    "shapes": lambda data: shapes_vqa.Builder(data_dir=data),
    "llava": lambda data: mm_llava.Builder(
        config=mm_llava.LlavaConfig(name="", json="talks.json", license="CC0-1.0"), data_dir=data
    ),
    "tfds": lambda data: mm_tfds.Builder(
        config=mm_tfds.TfdsConfig(name="", data=str(data)), data_dir=data.parent
    ),
}


@pytest.mark.parametrize("make", BUILDERS.values(), ids=BUILDERS)
def test_every_builder_says_what_it_writes_and_whose_that_is(built, make):
    def walk(feature, path):
        yield path, feature.doc.desc
        if isinstance(feature, tfds.features.FeaturesDict):
            for name, child in feature.items():
                yield from walk(child, f"{path}/{name}")
        elif isinstance(feature, (tfds.features.Dataset, tfds.features.Sequence)):
            inner = feature.feature
            children = (
                inner.items() if isinstance(inner, tfds.features.FeaturesDict) else [("[]", inner)]
            )
            for name, child in children:
                yield from walk(child, f"{path}/{name}")

    info = make(built).info
    told = dict(walk(info.features, ""))
    assert "/steps/etc/answer" in told
    assert not [path for path, doc in told.items() if not doc]
    assert info.description
    assert info.redistribution_info.license
    assert {"commit", "config", "date", "seeds", "versions"} <= set(info.metadata)


def test_what_add_etc_adds_says_what_it_is(tmp_path):
    steps, episode = new_features(num_cameras=2, num_objects=3)
    (tmp_path / "features.json").write_text(
        json.dumps(
            {
                "featuresDict": {
                    "features": {
                        "steps": {"sequence": {"feature": {"featuresDict": {"features": steps}}}},
                        "episode_metadata": {"featuresDict": {"features": episode}},
                    }
                }
            }
        )
    )
    of_steps, of_episodes = read_features(tmp_path)
    assert {"etc/answer", "annotation/box"} <= set(of_steps)
    assert not [name for name, feature in (of_steps | of_episodes).items() if not feature.doc]


def test_tfds_reads_it_without_our_code(built):
    script = """
import sys, tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
for episode in builder.as_dataset("train"):
    steps = list(episode["steps"].as_numpy_iterator())
    print(episode["episode_metadata"]["episode_id"].numpy().decode(), len(steps), steps[-1]["action"].sum(),
          len(steps[0]["etc"]["answer"]), steps[0]["observation"]["camera0"].shape, sep=";")
assert not [name for name in sys.modules if name.startswith(("etcvla", "data_builders"))]
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", script, built],
        capture_output=True,
        text=True,
        cwd="/",
        env=environment,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    ours = RLDSDataset(built)
    for episode, line in enumerate(run.stdout.splitlines()):
        name, length, total, items, shape = line.split(";")
        assert name == ours.metadata(episode)["episode_id"]
        assert int(length) == ours.lengths[episode] == STEPS
        last = ours.frame(int(ours.starts[episode + 1]) - 1, ["action"])["action"]
        assert float(total) == pytest.approx(float(last.sum()), abs=1e-5)
        assert int(items) == len(read_items(ours, int(ours.starts[episode])))
        assert shape == "(32, 32, 3)"


def test_statistics_are_exact(published):
    found = json.loads((published / "statistics.json").read_text())
    dataset = RLDSDataset(published)
    assert set(found["splits"]) == {"train", "val"}
    train = found["splits"]["train"]
    assert (train["episodes"], train["frames"]) == (3, 3 * STEPS)
    assert train["episodes_by_task"] == {"stack|lift": 3}
    for name in ("action", "observation/state"):
        values, row = dataset.column(name).astype(np.float64), train["features"][name]
        want = {
            "mean": values.mean(0),
            "std": values.std(0),
            "min": values.min(0),
            "max": values.max(0),
            "q01": np.quantile(values, 0.01, axis=0),
            "q99": np.quantile(values, 0.99, axis=0),
        }
        for key, value in want.items():
            np.testing.assert_allclose(row[key], value, rtol=1e-6, atol=1e-7, err_msg=key)
        assert row["count"] == 3 * STEPS
    assert train["items"]["items"] == len(all_items(published))
    assert found["transform"]["sha256"] == DatasetFacts.gather(published).transform()["sha256"]


def test_a_dataset_without_actions_is_published_as_well(tmp_path):
    croissant = pytest.importorskip("mlcroissant")
    folder = publish(
        prepare(Builder, TinyConfig(name="seen", count=2, acted=False), str(tmp_path)), frames=3
    )
    statistics = json.loads((folder / "statistics.json").read_text())
    assert set(statistics["splits"]["train"]["features"]) == {"observation/state"}
    text = (folder / "README.md").read_text()
    assert "task_categories: [visual-question-answering]" in text
    assert "`steps/action`" not in text
    rows = pq.read_table(folder / "preview" / "train.parquet").to_pylist()
    assert {tuple(row["action"]) for row in rows} == {()}
    records = croissant.Dataset(jsonld=folder / "croissant.json").records("preview_train")
    assert [record["preview_train/question"].decode() for record in records] == [
        row["question"] for row in rows
    ]


def test_the_hash_tells_features_apart(published, monkeypatch):
    facts = DatasetFacts.gather(published)
    before = facts.transform()["sha256"]
    monkeypatch.setattr(DatasetFacts, "vectors", lambda self: ["action"])
    assert facts.transform()["sha256"] != before


def test_the_card_states_counts_and_provenance(published):
    text = (published / "README.md").read_text()
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert "license: cc-by-4.0" in head
    assert "task_categories: [robotics, visual-question-answering]" in head
    assert "path: preview/train.parquet" in head
    made = json.loads((published / "metadata.json").read_text())
    assert made["commit"] in body
    assert f"| version of numpy | {np.__version__} |" in body
    assert f"| train | 3 | {3 * STEPS} | {len(all_items(published))} |" in body
    assert "| made-up | 3 | 1 |" in body
    assert r"| stack\|lift | 3 | 1 |" in body
    assert "the episode's index" in body
    items = all_items(published) + all_items(published, "val")
    assert f"Who stands behind the answers: oracle ({len(items):,})" in body
    assert (
        "<details><summary>Found</summary>\n\n| found | tries | kept |\n|---|---|---|\n| lift | 4 | 3 |\n"
        in body
    )
    assert "| `episode_metadata/rate` | tensor | - | Control steps a second; NaN unknown. |" in body
    assert "builder_from_directory" in body
    assert (published / "CITATION.bib").read_text().startswith("@misc{made")


def test_the_preview_shows_frames_with_their_items(published):
    table = pq.read_table(published / "preview" / "train.parquet")
    dataset = RLDSDataset(published)
    rows = table.to_pylist()
    places = {(row["episode_id"], row["step"]) for row in rows}
    assert 3 <= len(places) <= 5
    known = set(all_items(published))
    assert {ItemKey(*(row[field] for field in ItemKey._fields)) for row in rows} <= known
    first = rows[0]
    episode = next(e for e in range(3) if dataset.metadata(e)["episode_id"] == first["episode_id"])
    values = dataset.frame(
        int(dataset.starts[episode]) + first["step"], ["action", "observation/camera0"]
    )
    assert first["action"] == values["action"].tolist()
    shown = np.asarray(Image.open(io.BytesIO(first["image"]["bytes"])), int)
    assert np.abs(shown - values["observation/camera0"]).mean() < 12
    assert json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["image"] == {
        "_type": "Image"
    }


def test_croissant_is_valid_and_reads_the_preview(published):
    croissant = pytest.importorskip("mlcroissant")
    dataset = croissant.Dataset(jsonld=published / "croissant.json")  # raises where it is not valid
    assert not dataset.metadata.issues.errors
    rows = pq.read_table(published / "preview" / "val.parquet").to_pylist()
    found = list(dataset.records("preview_val"))
    assert len(found) == len(rows)
    assert [record["preview_val/answer"].decode() for record in found] == [
        row["answer"] for row in rows
    ]
    assert found[0]["preview_val/image"].size == (32, 32)


def test_every_file_has_its_sum(published):
    document = json.loads((published / "croissant.json").read_text())
    sums = {file["@id"]: file["sha256"] for file in document["distribution"]}
    assert sums == {
        name: hashlib.sha256((published / name).read_bytes()).hexdigest() for name in sums
    }
    there = {
        str(file.relative_to(published))
        for file in published.rglob("*")
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(published).parts)
    }
    assert there - set(sums) == {"README.md", "CITATION.bib", "croissant.json"}


def test_a_damaged_copy_is_found_by_its_sums(published, built, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "1.0.0"
    shutil.copytree(published, copy)
    monkeypatch.setattr(sys, "argv", ["publish", str(copy), "--check"])
    main()
    assert "every file is as it was published" in capsys.readouterr().out
    (copy / "statistics.json").unlink()
    (shard,) = copy.glob("*-train.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(
        SystemExit,
        match=rf"error: .*statistics.json is missing; .*{shard.name} has SHA-256 .*, not ",
    ):
        main()
    monkeypatch.setattr(sys, "argv", ["publish", str(built), "--check"])
    with pytest.raises(SystemExit, match="croissant.json is missing: .*publish"):
        main()


def test_a_review_leaves_out_what_was_rejected(built, tmp_path):
    items = all_items(built)
    bad = [items[0], items[5], items[-1]]
    review = write_review(
        tmp_path / "review.json", dict.fromkeys(bad, "reject") | {items[1]: "accept"}
    )
    before = {file.name: file.read_bytes() for file in built.iterdir() if file.is_file()}
    reviewed = apply_review(built, review)
    assert reviewed.parts[-2].startswith("tiny_reviewed-")
    assert all_items(reviewed) == [item for item in items if item not in bad]
    assert records(reviewed, "val") == records(built, "val")
    assert {file.name: file.read_bytes() for file in built.iterdir() if file.is_file()} == before
    made = json.loads((reviewed / "metadata.json").read_text())
    assert made["dropped"] == {"human": 3}
    assert made["reviewed_from"] == NAME
    ours, theirs = RLDSDataset(built), RLDSDataset(reviewed)
    for name in ("action", "annotation/box", "language_instruction"):
        np.testing.assert_array_equal(ours.column(name), theirs.column(name))
    camera = "observation/camera1"
    np.testing.assert_array_equal(
        ours.frame(7, [camera])[camera], theirs.frame(7, [camera])[camera]
    )
    assert apply_review(built, review) == reviewed
    episodes = list(tfds.builder_from_directory(str(reviewed)).as_dataset("train"))
    assert (
        sum(
            len(step["etc"]["question_type"])
            for e in episodes
            for step in e["steps"].as_numpy_iterator()
        )
        == len(items) - 3
    )


def test_a_reviewed_copy_has_no_card_of_its_source(published, tmp_path):
    source = tmp_path / NAME
    shutil.copytree(published, source)
    reviewed = apply_review(
        source, write_review(tmp_path / "review.json", {all_items(source)[0]: "reject"})
    )
    left = {file.name for file in reviewed.iterdir() if file.is_file()}
    assert left == {
        "LICENSE",
        "dataset_info.json",
        "features.json",
        "metadata.json",
        *(file.name for file in source.glob("*.tfrecord*")),
    }
    assert not (reviewed / "preview").exists()


def test_a_review_that_does_not_fit_is_refused(built, tmp_path):
    other = write_review(tmp_path / "other.json", {}, dataset="another/1.0.0")
    with pytest.raises(ValueError, match=f"other.json reviews another/1.0.0, not {NAME}"):
        apply_review(built, other)
    stale = write_review(
        tmp_path / "stale.json", {all_items(built)[0]._replace(answer="else"): "reject"}
    )
    with pytest.raises(ValueError, match="rejects 1 items that .* does not have.*built anew"):
        apply_review(built, stale)
    assert not list(built.parents[1].glob("*/incomplete.*"))
    other_format = tmp_path / NAME
    shutil.copytree(built, other_format)
    for file in other_format.glob("*.tfrecord*"):
        file.rename(file.with_name(file.name.replace("tfrecord", "array_record")))
    with pytest.raises(ValueError, match="array_record-.*TFRecord files alone"):
        apply_review(other_format, write_review(tmp_path / "fits.json", {}))


def test_the_page_of_any_dataset_can_be_judged(built, tmp_path):
    dataset_gallery(built, tmp_path / "page.html", split="val", frames=4)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<article>") == 4
    assert page.count("<figcaption>camera1</figcaption>") == 4
    reviewed = json.loads(page.split('id="review-data">')[1].split("</script>")[0])
    assert (reviewed["dataset"], reviewed["split"]) == (NAME, "val")
    assert {ItemKey(*key) for key in reviewed["keys"]} <= set(all_items(built, "val"))
    assert len(reviewed["keys"]) == page.count('data-choice="reject"') > 4


def test_images_that_are_stored_upside_down_are_shown_upright():
    image, about = np.arange(12, dtype=np.uint8).reshape(2, 2, 3), {"turned": ["wrist"]}
    np.testing.assert_array_equal(upright(image, "observation/wrist", about)[0, 0], image[1, 1])
    np.testing.assert_array_equal(upright(image, "observation/front", about), image)
