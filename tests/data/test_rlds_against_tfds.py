"""Every value of every step and episode that TFDS writes is read as TFDS reads it."""

import numpy as np
import pytest

from etcvla.data.rlds import RLDSDataset
from etcvla.errors import UserError
from etcvla.etc.items import Item
from etcvla.sims.rollout import Episode
from tests.etc.synthetic_annotation import make_annotation

tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")
from data_builders.common.rlds_schema import (  # noqa: E402
    RobotSchema,
    encode_episode,
    encode_items,
    robot_features,
    vqa_features,
)


def build(directory, features, examples, file_format="tfrecord"):
    builder = tfds.dataset_builders.AdhocBuilder(
        name="made_here",
        version="1.0.0",
        features=features,
        split_datasets={"train": enumerate(examples)},
        data_dir=directory,
        file_format=file_format,
    )
    builder.download_and_prepare()
    return builder.data_path


def flatten(tree, prefix=""):
    for name, value in tree.items():
        yield from (
            flatten(value, f"{prefix}{name}/")
            if isinstance(value, dict)
            else [(prefix + name, value)]
        )


def assert_same(got, want):
    """Compare values, and dtypes of tensors; `want` is TFDS's, where images may be encoded."""
    want = want.decode() if isinstance(want, bytes) and isinstance(got, str) else want
    if isinstance(got, list):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert_same(a, b)
    elif isinstance(want, bytes):
        np.testing.assert_array_equal(
            got, tf.image.decode_jpeg(want, dct_method="INTEGER_ACCURATE").numpy()
        )
    elif isinstance(got, str):
        assert got == want
    else:
        assert np.asarray(got).dtype == np.asarray(want).dtype
        np.testing.assert_array_equal(got, want)


def assert_reads_like_tfds(folder, *cameras):
    """Compare every value of every step and episode by `frame`, `column` and `metadata`."""
    dataset = RLDSDataset(folder)
    columns = {
        name: dataset.column(name)
        for name, feature in dataset.features.items()
        if feature.kind != "image"
    }
    skip = (
        {"steps": {"observation": {name: tfds.decode.SkipDecoding() for name in cameras}}}
        if cameras
        else None
    )
    frame = 0
    found = tfds.builder_from_directory(folder).as_dataset(split="train", decoders=skip)
    for number, read in enumerate(tfds.as_numpy(found)):
        metadata = dict(flatten(read["episode_metadata"]))
        assert set(metadata) == set(dataset.metadata(number))
        assert_same(
            list(dataset.metadata(number).values()),
            [metadata[name] for name in dataset.metadata(number)],
        )
        for step in read["steps"]:
            want = dict(flatten(step))
            got = dataset.frame(frame, list(dataset.features))
            assert set(want) == set(got)
            for name, value in want.items():
                assert_same(got[name], value)
                if name in columns:
                    assert_same(columns[name][frame], value)
            frame += 1
    assert frame == dataset.num_frames > 0
    return dataset


def test_robot_schema_equals_tfds(tmp_path):
    rng = np.random.default_rng(0)

    def _episode(number, steps, num_items):
        annotation = make_annotation(seed=number, steps=steps)
        items = []
        for t, count in enumerate(num_items):
            questions = [f"where to, {t}.{i}?" * 20 for i in range(count)]
            items.append(
                [
                    Item("trajectory", "path", question, f"<loc{i:04d}>")
                    for i, question in enumerate(questions)
                ]
            )
        images = {
            name: rng.integers(0, 256, (steps, 32, 32, 3), np.uint8) for name in ("front", "wrist")
        }
        state = rng.normal(size=(steps, 5)).astype(np.float32)
        action = rng.normal(size=(steps, 4)).astype(np.float32)
        return encode_episode(
            Episode(images, state, action, annotation, seed=number),
            items,
            num_objects=4,
            episode_id=f"episode {number}",
            task="reach",
            scene="source",
        )

    schema = RobotSchema(
        cameras=("front", "wrist"),
        image_size=32,
        num_objects=4,
        state_size=5,
        state_doc="s",
        action_size=4,
        action_doc="a",
    )
    features = robot_features(schema)
    folder = build(
        tmp_path,
        features,
        [_episode(0, 4, [2, 0, 1, 3]), _episode(1, 2, [0, 0]), _episode(2, 3, [0, 0, 5])],
    )
    dataset = assert_reads_like_tfds(folder, "front", "wrist")
    assert dataset.num_episodes == 3
    assert dataset.features["etc/question"].ragged and dataset.features[
        "observation/front"
    ].shape == (32, 32, 3)
    assert dataset.features["annotation/box"].doc.startswith("(ymin, xmin, ymax, xmax)")
    assert sorted(map(len, dataset.column("etc/question"))) == [0, 0, 0, 0, 0, 1, 2, 3, 5]


def test_image_text_schema_equals_tfds(tmp_path):
    examples = [
        {
            "steps": [
                {
                    "observation": {"image": np.full((16, 16, 3), 40 * i, np.uint8)},
                    "etc": encode_items(
                        [Item("caption", "c", "what?", f"square {i}", "oracle")] * i
                    ),
                }
            ],
            "episode_metadata": {"episode_id": str(i)},
        }
        for i in range(3)
    ]
    dataset = assert_reads_like_tfds(
        build(tmp_path, vqa_features(image_size=16), examples), "image"
    )
    assert dataset.lengths.tolist() == [1, 1, 1]


def other_features():
    """Describe features of all types that robot datasets use."""
    F = tfds.features
    return F.FeaturesDict(
        {
            "steps": F.Dataset(
                {
                    "action": F.FeaturesDict(
                        {
                            "gripper": F.Scalar(np.bool_),
                            "pose": F.Tensor(shape=(2, 3), dtype=np.float64),
                        }
                    ),
                    "box": F.BBoxFeature(),
                    "depth": F.Image(shape=(5, 7, 1), dtype=np.uint16, encoding_format="png"),
                    "label": F.ClassLabel(num_classes=300),
                    "mask": F.Tensor(shape=(3, 2), dtype=np.uint8, encoding="zlib"),
                    "flow": F.Tensor(shape=(2,), dtype=np.float32, encoding="bytes"),
                    "path": F.Sequence(
                        {"point": F.Tensor(shape=(2,), dtype=np.float32), "time": np.int32}
                    ),
                    "ticks": F.Tensor(shape=(2,), dtype=np.int64),
                    "huge": F.Scalar(np.uint64),
                    "picture": F.Image(shape=(None, None, 3), encoding_format="png"),
                }
            ),
            "episode_metadata": F.FeaturesDict(
                {
                    "nested": F.FeaturesDict({"pose": F.Tensor(shape=(3,), dtype=np.float32)}),
                    "sizes": F.Sequence(np.int32),
                    "thumbnails": F.Sequence(F.Image(shape=(4, 4, 3), encoding_format="png")),
                }
            ),
        }
    )


def test_other_feature_types_equal_tfds(tmp_path):
    rng = np.random.default_rng(0)

    def _step(t):
        return {
            "action": {"gripper": bool(t % 2), "pose": rng.integers(-9, 9, (2, 3)) / 4},
            "box": tfds.features.BBox(0.0, 0.25, 0.5, 1.0),
            "depth": rng.integers(0, 65535, (5, 7, 1), np.uint16),
            "label": 150 * t % 300,
            "mask": rng.integers(0, 255, (3, 2), np.uint8),
            "flow": rng.normal(size=2).astype(np.float32),
            "ticks": np.array([-t, 2**40 * t]),
            "huge": 2**64 - 1 - t,
            "path": [{"point": np.float32([i, t]), "time": i} for i in range(t)],
            "picture": rng.integers(0, 255, (3 + t, 4, 3), np.uint8),
        }

    def _episode(length):
        steps = [_step(t) for t in range(length)]
        thumbnail = rng.integers(0, 255, (4, 4, 3), np.uint8)
        metadata = {
            "nested": {"pose": np.float32([1, 2, length])},
            "sizes": list(range(length - 1)),
            "thumbnails": [thumbnail] * (length - 1),
        }
        return {"steps": steps, "episode_metadata": metadata}

    folder = build(tmp_path, other_features(), [_episode(1), _episode(4)])
    dataset = assert_reads_like_tfds(folder)
    assert dataset.window(0, "action/pose", 3)[0].shape == (3, 6)


def nested_features():
    F = tfds.features
    return F.FeaturesDict(
        {
            "steps": F.Dataset(
                {
                    "action": F.Tensor(shape=(2,), dtype=np.float32),
                    "words": F.Sequence(F.Sequence(F.Text())),
                    "paths": F.Sequence(F.Sequence(F.Tensor(shape=(2,), dtype=np.float32))),
                    "deep": F.Sequence(F.Sequence(F.Sequence(np.int64))),
                    "fixed": F.Sequence(np.float32, length=3),
                }
            ),
            "episode_metadata": F.FeaturesDict({"tree": F.Sequence(F.Sequence(F.Text()))}),
        }
    )


def nested_episode(length):
    def _words(t, count):
        return [f"{t} {count} {j}" for j in range(count)]

    def _step(t):
        return {
            "action": np.float32([t, length]),
            "words": [_words(t, count) for count in range(t + 1)],
            "paths": [np.full((i, 2), t, np.float32) for i in range(t)],
            "deep": [[[], [t]]] * t,
            "fixed": np.float32([t, t, 1]),
        }

    return {
        "steps": [_step(t) for t in range(length)],
        "episode_metadata": {"tree": [["a"] * i for i in range(length)]},
    }


def plain(value):
    """Return nested lists of numbers and strings, from ragged tensors as well."""
    if hasattr(value, "to_list"):
        value = value.to_list()
    if hasattr(value, "numpy"):
        value = value.numpy()
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    value = value.decode() if isinstance(value, bytes) else value
    return [plain(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_nested_lists_in_both_file_formats(tmp_path, file_format):
    folder = build(tmp_path, nested_features(), [nested_episode(3), nested_episode(2)], file_format)
    dataset = RLDSDataset(folder)
    assert dataset.whole_records == (file_format == "array_record") and sorted(
        dataset.lengths.tolist()
    ) == [2, 3]
    for number, length in enumerate(dataset.lengths.tolist()):
        want = nested_episode(length)
        assert plain(dataset.metadata(number)["tree"]) == want["episode_metadata"]["tree"]
        for t in range(length):
            got = dataset.frame(int(dataset.starts[number]) + t, list(dataset.features))
            for name, value in want["steps"][t].items():
                assert plain(got[name]) == plain(value)
    np.testing.assert_array_equal(dataset.window(0, "action", 2)[0][:, 0], [0, 1])


def test_dataset_without_steps_raises(tmp_path):
    features = tfds.features.FeaturesDict({"caption": tfds.features.Text()})
    folder = build(tmp_path, features, [{"caption": "a picture"}])
    with pytest.raises(UserError, match="features.json describes no features of steps"):
        RLDSDataset(folder)
