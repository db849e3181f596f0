"""Publication: cards, statistics, previews and Croissant agree with the dataset; reviews apply."""

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
from huggingface_hub import DatasetCard
from PIL import Image

from data_builders.add_etc.features import new_features
from data_builders.common.build import prepare
from data_builders.common.read_dataset import read_items, to_upright
from data_builders.libero_etc import libero_etc_dataset_builder as libero
from data_builders.metaworld_etc import metaworld_etc_dataset_builder as metaworld
from data_builders.mm_llava import mm_llava_dataset_builder as mm_llava
from data_builders.mm_tfds import mm_tfds_dataset_builder as mm_tfds
from data_builders.shapes_vqa import shapes_vqa_dataset_builder as shapes_vqa
from data_builders.tools.gallery import write_dataset_gallery
from data_builders.tools.publish.__main__ import publish
from data_builders.tools.publish.summary import DatasetSummary
from data_builders.tools.review import apply_review
from etcvla.data.rlds import RLDSDataset
from etcvla.errors import UserError
from etcvla.etc.review import ItemKey
from tests.data_builders.command import run_command
from tests.data_builders.gallery_page import read_review_data, write_review
from tests.data_builders.tiny_robot import STEPS, Builder, TinyConfig

NAME = "tiny_robot/tiny/1.0.0"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Version folder of a dataset; tests must not change it."""
    return prepare(Builder, TinyConfig(), str(tmp_path_factory.mktemp("datasets")))


@pytest.fixture(scope="module")
def published(built, tmp_path_factory):
    """A published copy with more metadata."""
    copy = tmp_path_factory.mktemp("published") / "1.0.0"
    shutil.copytree(built, copy)
    metadata = json.loads((copy / "metadata.json").read_text())
    metadata["found"] = {"lift": {"tries": 4, "kept": 3}}
    (copy / "metadata.json").write_text(json.dumps(metadata))
    assert publish(copy, num_frames=5) == copy
    return copy


def records(directory, split):
    (file,) = directory.glob(f"*-{split}.tfrecord*")
    return list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())


def all_item_keys(directory, split="train"):
    dataset = RLDSDataset(directory, split)
    keys = []
    for episode in range(dataset.num_episodes):
        episode_id = dataset.metadata(episode)["episode_id"]
        for step in range(STEPS):
            for item in read_items(dataset, int(dataset.starts[episode]) + step):
                fields = (item.question_type, item.question, item.answer)
                keys.append(ItemKey(episode_id, step, *fields))
    return keys


def metaworld_with_conditions(data):
    config = metaworld.MetaWorldConfig(tasks=("reach",), conditions=("clutter",))
    return metaworld.Builder(config=config, data_dir=data)


def llava_with_license(data):
    config = mm_llava.LlavaConfig(data="talks.json", license="CC0-1.0")
    return mm_llava.Builder(config=config, data_dir=data)


def tfds_importer(data):
    return mm_tfds.Builder(config=mm_tfds.TfdsConfig(data=str(data)), data_dir=data.parent)


BUILDERS = {
    "metaworld": lambda data: metaworld.Builder(config="source", data_dir=data),
    "metaworld with conditions": metaworld_with_conditions,
    "libero": lambda data: libero.Builder(config="libero_object_rlds", data_dir=data),
    "shapes": lambda data: shapes_vqa.Builder(data_dir=data),
    "llava": llava_with_license,
    "tfds": tfds_importer,
}


def feature_docs(feature, path=""):
    """Yield (path, description) of a feature and of all features in it."""
    yield path, feature.doc.desc
    children = {}
    if isinstance(feature, tfds.features.FeaturesDict):
        children = dict(feature.items())
    elif isinstance(feature, (tfds.features.Dataset, tfds.features.Sequence)):
        inner = feature.feature
        is_dict = isinstance(inner, tfds.features.FeaturesDict)
        children = dict(inner.items()) if is_dict else {"[]": inner}
    for name, child in children.items():
        yield from feature_docs(child, f"{path}/{name}")


@pytest.mark.parametrize("make_builder", BUILDERS.values(), ids=BUILDERS)
def test_every_builder_describes_its_features_and_states_a_license(built, make_builder):
    info = make_builder(built).info
    docs = dict(feature_docs(info.features))
    assert "/steps/etc/answer" in docs
    assert not [path for path, doc in docs.items() if not doc]
    assert info.description
    assert info.redistribution_info.license
    assert {"commit", "config", "date", "seeding", "package_versions"} <= set(info.metadata)


def test_features_of_the_converter_have_descriptions():
    step_features, episode_features = new_features(num_cameras=2, num_objects=3)
    assert {"etc", "annotation"} <= set(step_features)
    for feature in [*step_features.values(), *episode_features.values()]:
        for path, doc in feature_docs(feature):
            assert doc, path


def test_tfds_reads_a_dataset_without_this_code(built):
    script = """
import sys
import tensorflow_datasets as tfds

for episode in tfds.builder_from_directory(sys.argv[1]).as_dataset("train"):
    steps = list(episode["steps"].as_numpy_iterator())
    print(
        episode["episode_metadata"]["episode_id"].numpy().decode(),
        len(steps),
        steps[-1]["action"].sum(),
        len(steps[0]["etc"]["answer"]),
        steps[0]["observation"]["camera0"].shape,
        sep=";",
    )
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
    dataset = RLDSDataset(built)
    for episode, line in enumerate(run.stdout.splitlines()):
        name, length, total, items, shape = line.split(";")
        assert name == dataset.metadata(episode)["episode_id"]
        assert int(length) == dataset.lengths[episode] == STEPS
        last = dataset.frame(int(dataset.starts[episode + 1]) - 1, ["action"])["action"]
        assert float(total) == pytest.approx(float(last.sum()), abs=1e-5)
        assert int(items) == len(read_items(dataset, int(dataset.starts[episode])))
        assert shape == "(32, 32, 3)"


def test_statistics_have_exact_counts(published):
    statistics = json.loads((published / "statistics.json").read_text())
    assert set(statistics["splits"]) == {"train", "val"}
    train = statistics["splits"]["train"]
    assert train["episodes"] == 3
    assert train["frames"] == 3 * STEPS
    assert train["episodes_by_task"] == {"stack|lift": 3}
    assert train["items"]["items"] == len(all_item_keys(published))
    digest = DatasetSummary.load(published).transform()["sha256"]
    assert statistics["transform"]["sha256"] == digest


@pytest.mark.parametrize("name", ["action", "observation/state"])
def test_statistics_of_vectors_are_exact(published, name):
    statistics = json.loads((published / "statistics.json").read_text())
    row = statistics["splits"]["train"]["features"][name]
    values = RLDSDataset(published).column(name).astype(np.float64)
    expected = {
        "mean": values.mean(0),
        "std": values.std(0),
        "min": values.min(0),
        "max": values.max(0),
        "q01": np.quantile(values, 0.01, axis=0),
        "q99": np.quantile(values, 0.99, axis=0),
    }
    for key, value in expected.items():
        np.testing.assert_allclose(row[key], value, rtol=1e-6, atol=1e-7, err_msg=key)
    assert row["count"] == 3 * STEPS


def test_dataset_without_actions_is_published(tmp_path):
    croissant = pytest.importorskip("mlcroissant")
    config = TinyConfig(name="seen", count=2, has_actions=False)
    folder = publish(prepare(Builder, config, str(tmp_path)), num_frames=3)
    statistics = json.loads((folder / "statistics.json").read_text())
    assert set(statistics["splits"]["train"]["features"]) == {"observation/state"}
    card = DatasetCard.load(folder / "README.md")
    assert card.data.task_categories == ["visual-question-answering"]
    assert "`steps/action`" not in card.text
    rows = pq.read_table(folder / "preview" / "train.parquet").to_pylist()
    assert all(row["action"] == [] for row in rows)
    records = croissant.Dataset(jsonld=folder / "croissant.json").records("preview_train")
    questions = [record["preview_train/question"].decode() for record in records]
    assert questions == [row["question"] for row in rows]


def test_hash_of_the_transform_depends_on_the_features(published, monkeypatch):
    dataset = DatasetSummary.load(published)
    before = dataset.transform()["sha256"]
    monkeypatch.setattr(DatasetSummary, "vectors", lambda self: ["action"])
    assert dataset.transform()["sha256"] != before


def test_card_has_metadata_for_the_hub(published):
    data = DatasetCard.load(published / "README.md").data
    assert data.pretty_name == NAME
    assert data.license == "cc-by-4.0"
    assert data.task_categories == ["robotics", "visual-question-answering"]
    assert data.size_categories == ["n<1K"]
    (config,) = data.to_dict()["configs"]
    assert config["data_files"] == [
        {"split": "train", "path": "preview/train.parquet"},
        {"split": "val", "path": "preview/val.parquet"},
    ]


def test_card_has_counts_and_provenance(published):
    text = DatasetCard.load(published / "README.md").text
    metadata = json.loads((published / "metadata.json").read_text())
    train_items = len(all_item_keys(published))
    num_items = train_items + len(all_item_keys(published, "val"))
    for line in (
        f"| commit | {metadata['commit']} |",
        f"| version of numpy | {np.__version__} |",
        f"| train | 3 | {3 * STEPS} | {train_items} |",
        "| made-up | 3 | 1 |",
        r"| stack\|lift | 3 | 1 |",
        "| seeding | the episode's index |",
        f"Origin of the answers: oracle ({num_items:,})",
        "<details><summary>Found</summary>\n\n| found | tries | kept |\n|---|---|---|\n"
        "| lift | 4 | 3 |\n",
        "| `episode_metadata/rate` | tensor | - | Control steps per second; NaN unknown. |",
        "builder_from_directory",
    ):
        assert line in text
    assert (published / "CITATION.bib").read_text().startswith("@misc{made")


def test_preview_has_frames_with_their_items(published):
    table = pq.read_table(published / "preview" / "train.parquet")
    rows = table.to_pylist()
    frames = {(row["episode_id"], row["step"]) for row in rows}
    assert 3 <= len(frames) <= 5
    keys = {ItemKey(*(row[field] for field in ItemKey._fields)) for row in rows}
    assert keys <= set(all_item_keys(published))
    viewer = json.loads(table.schema.metadata[b"huggingface"])
    assert viewer["info"]["features"]["image"] == {"_type": "Image"}


def test_preview_has_actions_and_images_of_the_dataset(published):
    row = pq.read_table(published / "preview" / "train.parquet").to_pylist()[0]
    dataset = RLDSDataset(published)
    episode_ids = [dataset.metadata(episode)["episode_id"] for episode in range(3)]
    frame = int(dataset.starts[episode_ids.index(row["episode_id"])]) + row["step"]
    values = dataset.frame(frame, ["action", "observation/camera0"])
    assert row["action"] == values["action"].tolist()
    image = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])), int)
    assert np.abs(image - values["observation/camera0"]).mean() < 12


def test_croissant_is_valid_and_reads_the_preview(published):
    croissant = pytest.importorskip("mlcroissant")
    dataset = croissant.Dataset(jsonld=published / "croissant.json")  # raises if it is invalid
    assert not dataset.metadata.issues.errors
    rows = pq.read_table(published / "preview" / "val.parquet").to_pylist()
    found = list(dataset.records("preview_val"))
    answers = [record["preview_val/answer"].decode() for record in found]
    assert answers == [row["answer"] for row in rows]
    assert found[0]["preview_val/image"].size == (32, 32)


def test_croissant_has_the_checksum_of_every_file(published):
    document = json.loads((published / "croissant.json").read_text())
    checksums = {file["@id"]: file["sha256"] for file in document["distribution"]}
    for name, checksum in checksums.items():
        assert hashlib.sha256((published / name).read_bytes()).hexdigest() == checksum
    visible = set()
    for file in published.rglob("*"):
        relative = file.relative_to(published)
        if file.is_file() and not any(part.startswith(".") for part in relative.parts):
            visible.add(str(relative))
    assert visible - set(checksums) == {"README.md", "CITATION.bib", "croissant.json"}


def test_check_finds_damaged_files(published, built, tmp_path, capsys):
    module = "data_builders.tools.publish"
    copy = tmp_path / "1.0.0"
    shutil.copytree(published, copy)
    run_command(module, f"--data={copy}", "--check")
    assert "all files match their checksums" in capsys.readouterr().out
    (copy / "statistics.json").unlink()
    (shard,) = copy.glob("*-train.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    message = rf"error: .*statistics.json is missing; .*{shard.name} has SHA-256 .*, not "
    with pytest.raises(SystemExit, match=message):
        run_command(module, f"--data={copy}", "--check")
    with pytest.raises(SystemExit, match="croissant.json is missing: .*publish"):
        run_command(module, f"--data={built}", "--check")


@pytest.fixture(scope="module")
def reviewed(built, tmp_path_factory):
    """(reviewed dataset, rejected items, review file)."""
    items = all_item_keys(built)
    rejected = [items[0], items[5], items[-1]]
    verdicts = dict.fromkeys(rejected, "reject") | {items[1]: "accept"}
    path = tmp_path_factory.mktemp("review") / "review.json"
    review = write_review(path, verdicts, NAME)
    return apply_review(built, review), rejected, review


def test_review_drops_rejected_items(built, reviewed):
    path, rejected, _ = reviewed
    assert path.parts[-2].startswith("tiny_reviewed-")
    kept = [key for key in all_item_keys(built) if key not in rejected]
    assert all_item_keys(path) == kept
    metadata = json.loads((path / "metadata.json").read_text())
    assert metadata["dropped_items"] == {"human": 3}
    assert metadata["accepted_items"] == 1
    assert metadata["reviewed_from"] == NAME


def test_review_keeps_everything_else(built, reviewed):
    path = reviewed[0]
    assert records(path, "val") == records(built, "val")
    source = RLDSDataset(built)
    result = RLDSDataset(path)
    for name in ("action", "annotation/box", "language_instruction"):
        np.testing.assert_array_equal(source.column(name), result.column(name))
    camera = "observation/camera1"
    image = source.frame(7, [camera])[camera]
    np.testing.assert_array_equal(image, result.frame(7, [camera])[camera])


def test_review_is_applied_once(built, reviewed):
    path, _, review = reviewed
    before = {file: file.stat().st_mtime_ns for file in built.iterdir()}
    written = (path / "dataset_info.json").stat().st_mtime_ns
    assert apply_review(built, review) == path
    assert (path / "dataset_info.json").stat().st_mtime_ns == written
    assert {file: file.stat().st_mtime_ns for file in built.iterdir()} == before


def test_tfds_reads_a_reviewed_dataset(built, reviewed):
    count = 0
    for episode in tfds.builder_from_directory(str(reviewed[0])).as_dataset("train"):
        for step in episode["steps"].as_numpy_iterator():
            count += len(step["etc"]["question_type"])
    assert count == len(all_item_keys(built)) - 3


def test_review_command_prints_the_path(built, reviewed):
    path, _, review = reviewed
    command = [sys.executable, "-m", "data_builders.tools.review"]
    command += [f"--data={built}", f"--review={review}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(path)


def test_reviewed_copy_has_no_card_of_its_source(published, tmp_path):
    source = tmp_path / NAME
    shutil.copytree(published, source)
    verdicts = {all_item_keys(source)[0]: "reject"}
    path = apply_review(source, write_review(tmp_path / "review.json", verdicts, NAME))
    expected = {"LICENSE", "dataset_info.json", "features.json", "metadata.json"}
    expected |= {file.name for file in source.glob("*.tfrecord*")}
    assert {file.name for file in path.iterdir() if file.is_file()} == expected
    assert not (path / "preview").exists()


def test_review_of_another_dataset_is_an_error(built, tmp_path):
    review = write_review(tmp_path / "other.json", {}, "another/1.0.0")
    with pytest.raises(UserError, match=f"other.json reviews another/1.0.0, not {NAME}"):
        apply_review(built, review)


def test_review_of_a_missing_item_is_an_error(built, tmp_path):
    missing = all_item_keys(built)[0]._replace(answer="else")
    review = write_review(tmp_path / "stale.json", {missing: "reject"}, NAME)
    with pytest.raises(UserError, match="rejects 1 items that .* does not have.*built again"):
        apply_review(built, review)
    assert not list(built.parents[1].glob("*/incomplete.*"))


def test_review_of_array_record_files_is_an_error(built, tmp_path):
    copy = tmp_path / NAME
    shutil.copytree(built, copy)
    for file in copy.glob("*.tfrecord*"):
        file.rename(file.with_name(file.name.replace("tfrecord", "array_record")))
    review = write_review(tmp_path / "review.json", {}, NAME)
    with pytest.raises(UserError, match="array_record-.*TFRecord files only"):
        apply_review(copy, review)


def test_gallery_page_of_any_dataset_has_review_data(built, tmp_path):
    page = tmp_path / "page.html"
    write_dataset_gallery(built, page, split="val", num_frames=4)
    text = page.read_text()
    assert text.count("<article>") == 4
    assert text.count("<figcaption>camera1</figcaption>") == 4
    data = read_review_data(page)
    assert data["dataset"] == NAME
    assert data["split"] == "val"
    assert len(data["keys"]) > 4
    assert {ItemKey(*key) for key in data["keys"]} <= set(all_item_keys(built, "val"))


def test_images_that_are_stored_upside_down_become_upright():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    metadata = {"turned": ["wrist"]}
    np.testing.assert_array_equal(to_upright(image, "wrist", metadata)[0, 0], image[1, 1])
    np.testing.assert_array_equal(to_upright(image, "front", metadata), image)
