"""The RLDS reader: public fixtures, wrong use and damaged files."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from etcvla.data import cache, frame_index
from etcvla.data.records import RecordError
from etcvla.data.rlds import RLDSDataset, describe
from etcvla.data.shards import open_shard
from etcvla.data.storage import as_path, merge_ranges, open_file
from etcvla.errors import UserError
from tests.data.handmade_rlds import STEPS, example, features_json, record, write_rlds
from tests.golden_dir import ROOT, golden

PUBLIC = golden("rlds_tfrecord")


def png(value=0, size=4):
    file = BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def episode(steps=3, seed=0):
    return {
        "action": np.arange(2 * steps, dtype=np.float32) + 10 * seed,
        "count": list(range(steps)),
        "image": [png(seed + t) for t in range(steps)],
        "note": [f"note {seed} {t}".encode() for t in range(steps)],
    }


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


# Public structures


@pytest.fixture(params=PUBLIC, ids=lambda folder: folder.name)
def public(request, tmp_path):
    """(dataset folder, {split: {episode: {name: value}}})."""
    values = {}
    with np.load(ROOT / "rlds_tfrecord" / f"expected_{request.param.name}.npz") as file:
        for key in file.files:
            split, number, name = key.split("/", 2)
            values.setdefault(split, {}).setdefault(int(number), {})[name] = file[key]
    return shutil.copytree(request.param, tmp_path / request.param.name), values


def test_public_fixtures_equal_tfds(public):
    folder, splits = public
    for split, episodes in splits.items():
        dataset = RLDSDataset(folder, split)
        assert dataset.lengths.tolist() == [
            int(episodes[e]["num_steps"]) for e in range(len(episodes))
        ]
        assert dataset.num_frames == dataset.starts[-1] == sum(dataset.lengths)
        names = {name.rsplit("/", 1)[-1]: name for name in dataset.features}
        for number, values in episodes.items():
            first = int(dataset.starts[number])
            metadata = dataset.metadata(number)
            for key, value in values.items():
                if key.startswith("episode_metadata/"):
                    assert metadata[key.removeprefix("episode_metadata/")] == value
                elif key in names:
                    kept = dataset.column(names[key])[first : first + dataset.lengths[number]]
                    read = [
                        dataset.frame(first + t, [names[key]])[names[key]]
                        for t in range(dataset.lengths[number])
                    ]
                    np.testing.assert_array_equal(np.array(kept), np.array(read))
                    np.testing.assert_array_equal(
                        np.array(read), np.broadcast_to(value, np.shape(read))
                    )
                elif key.endswith("_first_islow"):
                    camera = names[key.removesuffix("_first_islow")]
                    image = dataset.frame(first, [camera])[camera]
                    assert image.dtype == np.uint8
                    assert np.abs(image.astype(int) - value).max() <= 1
                elif key.endswith("_mean"):
                    camera = names[key.removesuffix("_mean")]
                    means = [
                        dataset.frame(first + t, [camera])[camera].mean((0, 1))
                        for t in range(len(value))
                    ]
                    # TFDS decodes by the fast transform, which is about one grey level darker;
                    # differences between images must agree.
                    np.testing.assert_allclose(means, value, atol=2.5)
                    np.testing.assert_allclose(means - means[0], value - value[0], atol=0.5)


def test_windows_repeat_the_last_action(public):
    folder, splits = public
    dataset = RLDSDataset(folder, next(iter(splits)))
    actions = dataset.column("action")
    for frame in range(dataset.num_frames):
        number, step = dataset.locate(frame)
        end = dataset.starts[number + 1]
        values, present = dataset.window(frame, "action", 8)
        index = np.minimum(np.arange(frame, frame + 8), end - 1)
        np.testing.assert_array_equal(values, actions[index])
        assert values.dtype == np.float32
        assert present.tolist() == [frame + i < end for i in range(8)]
        assert frame == dataset.starts[number] + step


def test_threads_and_pickled_copies_read_the_same(public):
    folder, splits = public
    dataset = RLDSDataset(folder, next(iter(splits)))
    names = list(dataset.features)
    frames = np.random.default_rng(0).integers(0, dataset.num_frames, 60).tolist()
    expected = [dataset.frame(frame, names) for frame in frames]
    copy = pickle.loads(pickle.dumps(dataset))
    with ThreadPoolExecutor(8) as pool:
        for read in (
            list(pool.map(lambda f: dataset.frame(f, names), frames)),
            [copy.frame(f, names) for f in frames],
        ):
            for got, want in zip(read, expected, strict=True):
                for name in names:
                    np.testing.assert_array_equal(got[name], want[name])


# The index's cache


@pytest.fixture
def folder(tmp_path):
    write_rlds(tmp_path / "set" / "1.0.0", [episode(3), episode(2, seed=9), episode(4, seed=20)])
    return tmp_path / "set" / "1.0.0"


def test_index_is_cached_and_rebuilt_when_a_file_changes(folder, monkeypatch):
    built = []  # one element per file that was indexed
    build_one = frame_index._index_shard
    monkeypatch.setattr(
        frame_index, "_index_shard", lambda *args: built.append(1) or build_one(*args)
    )
    first = RLDSDataset(folder)
    again = RLDSDataset(folder)
    assert len(built) == 1
    for name in ("action", "note", "count"):
        np.testing.assert_array_equal(again.column(name), first.column(name))
    write_rlds(folder, [episode(5)])
    assert RLDSDataset(folder).lengths.tolist() == [5] and len(built) == 2
    file = folder / ".etcvla" / "train" / "index"
    file.write_bytes(file.read_bytes()[:-8])  # a truncated index
    assert RLDSDataset(folder).lengths.tolist() == [5] and len(built) == 3
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    assert RLDSDataset(folder).lengths.tolist() == [5] and len(built) == 4


def test_cache_folder_separates_datasets(folder, tmp_path, monkeypatch):
    other = tmp_path / "other" / "set" / "1.0.0"
    write_rlds(other, [episode(7)])
    monkeypatch.setenv("ETCVLA_INDEX", str(tmp_path / "apart"))
    for directory in (folder, other):
        (directory / ".etcvla").touch()  # even root cannot write below a file
    for _ in range(2):
        assert RLDSDataset(folder).num_frames == 9
        assert RLDSDataset(other).num_frames == 7
    assert len(list((tmp_path / "apart").iterdir())) == 2


def test_unwritable_index_is_logged(folder, tmp_path, monkeypatch, caplog):
    (folder / ".etcvla").touch()
    monkeypatch.setenv("ETCVLA_INDEX", str(folder / ".etcvla" / "apart"))
    assert RLDSDataset(folder).num_frames == 9
    assert "index is computed again next time. Set ETCVLA_INDEX" in caplog.text


def test_index_of_read_only_data_is_in_the_cache_folder(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ETCVLA_INDEX", str(tmp_path / "apart"))
    (folder / ".etcvla").touch()  # even root cannot write below a file
    assert RLDSDataset(folder).num_frames == 9
    (file,) = (tmp_path / "apart").glob("*/index")
    first = file.stat().st_mtime_ns
    assert (
        RLDSDataset(folder).num_frames == 9 and file.stat().st_mtime_ns == first and not caplog.text
    )


def many_files(folder, number=4):
    for i in range(number):
        path = write_rlds(folder, [episode(i + 1, seed=i), episode(2, seed=50 + i)])
        path.rename(folder / f"handmade-train.tfrecord-{i:05d}-of-{number:05d}")
    return sorted(folder.glob("*tfrecord*"))


def test_index_does_not_depend_on_the_number_of_processes(tmp_path):
    shards = many_files(tmp_path / "set")
    opened = [open_shard(path) for path in shards]
    key = frame_index.files_key(shards)
    one_cache = cache.IndexCache((tmp_path / "1",), key)
    two_cache = cache.IndexCache((tmp_path / "2",), key)
    one = frame_index.load_index(opened, one_cache, processes=1)
    two = frame_index.load_index(opened, two_cache, processes=2)
    assert one.columns == two.columns
    assert (tmp_path / "1" / "index").read_bytes() == (tmp_path / "2" / "index").read_bytes()
    for name in ("records", "locations", "offsets"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.records[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


# Remote files


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """(URL of a copy in fsspec's memory, a dataset of the same local files)."""
    monkeypatch.setenv("ETCVLA_INDEX", str(tmp_path / "apart"))
    many_files(tmp_path / "set" / "1.0.0")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "set"), "/far/set", recursive=True)
    yield "memory://far/set", RLDSDataset(tmp_path / "set")
    memory.rm("/far", recursive=True)


def test_remote_dataset_equals_local_dataset(remote, monkeypatch):
    url, local = remote
    remote_dataset = RLDSDataset(url)
    assert (
        remote_dataset.num_frames == local.num_frames
        and str(remote_dataset.directory) == f"{url}/1.0.0"
    )
    names = list(local.features)
    for frame in range(local.num_frames):
        a = remote_dataset.frame(frame, names)
        b = local.frame(frame, names)
        for name in names:
            np.testing.assert_array_equal(a[name], b[name])
    np.testing.assert_array_equal(remote_dataset.column("action"), local.column("action"))
    monkeypatch.setattr(frame_index, "_index_shard", None)  # the index was kept
    assert (
        pickle.loads(pickle.dumps(remote_dataset)).window(3, "action", 4)[0].tolist()
        == local.window(3, "action", 4)[0].tolist()
    )
    with pytest.raises(UserError, match="memory://far/nothing"):
        RLDSDataset("memory://far/nothing")


def test_remote_frame_is_read_by_one_request(remote, monkeypatch):
    url, _ = remote
    far = RLDSDataset(url)
    requests = []
    file_system = type(fsspec.filesystem("memory"))
    read = fsspec.filesystem("memory").cat_ranges
    monkeypatch.setattr(
        file_system,
        "cat_ranges",
        lambda self, paths, starts, ends, **kw: (
            requests.append(list(zip(starts, ends, strict=True))) or read(paths, starts, ends, **kw)
        ),
    )
    far.frame(0, ["image", "action", "note"])
    assert len(requests) == 1 and len(requests[0]) == 1  # ranges within 64 kB are merged


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 60)), min_size=1, max_size=9),
    st.integers(0, 40),
)
def test_merged_ranges_cover_all_ranges_and_are_apart(ranges, gap):
    merged = merge_ranges(ranges, gap)
    for start, size in ranges:
        assert any(first <= start and start + size <= first + length for first, length in merged)
    for (a, length), (b, _) in zip(merged, merged[1:], strict=False):
        assert b > a + length + gap


def test_remote_ranges_equal_slices():
    data = bytes(range(256)) * 3000
    fsspec.filesystem("memory").pipe_file("/ranges", data)
    file = open_file(as_path("memory://ranges"))
    assert file.size == len(data)
    ranges = [(700_000, 5), (3, 4), (5, 600), (0, 1), (len(data) - 2, 9)]
    expected = [data[start : start + length] for start, length in ranges]
    assert [bytes(part) for part in file.read(ranges)] == expected


def test_remote_paths_keep_their_url():
    path = as_path("memory://far/set") / "1.0.0"
    assert str(path) == "memory://far/set/1.0.0"
    assert str(path.parent) == "memory://far/set" and path.name == "1.0.0"
    assert pickle.loads(pickle.dumps(path)) == path == as_path(str(path))


# Wrong use


def test_dataset_is_found_by_its_parent_folder(folder):
    assert RLDSDataset(folder.parent).directory == folder
    write_rlds(folder.parent / "incomplete.ABC_1.0.1", [episode()])
    assert RLDSDataset(folder.parent).directory == folder
    write_rlds(folder.parent / "2.0.0", [episode()])
    with pytest.raises(UserError, match="1.0.0.*2.0.0"):
        RLDSDataset(folder.parent)


def test_errors_name_what_is_missing(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist.*data_builders"):
        RLDSDataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match="'valid'.*it has train"):
        RLDSDataset(folder, "valid")
    dataset = RLDSDataset(folder)
    with pytest.raises(UserError, match="'imge'.*did you mean image"):
        dataset.frame(0, ["imge"])
    with pytest.raises(ValueError, match="image .*one image per step"):
        dataset.window(0, "image", 2)
    for frame in (-1, 9):
        with pytest.raises(IndexError, match=f"frame {frame} of"):
            dataset.frame(frame, ["count"])


def test_missing_file_or_episode_raises(folder):
    file = folder / "handmade-train.tfrecord-00000-of-00001"
    info = {"name": "handmade", "splits": [{"name": "train", "shardLengths": ["4"]}]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"have \[3\] episodes, but dataset_info.json says \[4\]"):
        RLDSDataset(folder)
    file.rename(folder / "handmade-train.tfrecord-00000-of-00003")
    with pytest.raises(UserError, match=r"\[1, 2\] of 3"):
        RLDSDataset(folder)


def test_malformed_features_json_raises(folder):
    for text, message in (
        ("{", "features.json is not a TFDS"),
        ('{"featuresDict": {"features": {}}}', "no features"),
    ):
        (folder / "features.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            RLDSDataset(folder)


# Damaged files


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"action": np.zeros(5, np.float32)}, "steps/action disagrees"),
        ({"note": [b"one"]}, "steps/note disagrees"),
        (
            {"action": np.zeros(0, np.float32), "count": [], "image": [], "note": []},
            "episode 1 has no steps",
        ),
    ],
)
def test_inconsistent_episodes_raise(tmp_path, change, problem):
    path = write_rlds(tmp_path, [episode(), {**episode(), **change}])
    with pytest.raises(
        RecordError, match=re.escape(f"{path}, record 1 ") + rf"\(byte \d+\): {problem}"
    ):
        RLDSDataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "name", "problem"),
    [
        ({"image": [png(), png()[:-30], png()]}, "image", "steps/image, value 1 does not decode"),
        ({"image": [png(), b"hello", png()]}, "image", "steps/image, value 1 does not decode"),
        ({"image": [png(), png(size=5), png()]}, "image", "shape .5, 5, 3."),
        ({"note": [b"ok", b"\xff\xfe", b"ok"]}, "note", "steps/note, value 1 does not decode"),
        ({"count": [b"1", b"2", b"3"]}, "count", "steps/count has another type"),
        ({"image": [1, 2, 3]}, "image", "steps/image has another type"),
    ],
)
def test_values_that_do_not_decode_raise(tmp_path, change, name, problem):
    path = write_rlds(tmp_path, [episode(2), {**episode(), **change}])
    with pytest.raises(RecordError, match=re.escape(f"{path}, record 1 ") + f".*{problem}"):
        RLDSDataset(tmp_path).frame(3, [name])


def test_feature_missing_in_one_record_raises(tmp_path):
    bad = episode()
    del bad["note"]
    write_rlds(tmp_path, [episode(), bad])
    dataset = RLDSDataset(tmp_path)
    assert dataset.frame(0, ["note"]) == {"note": "note 0 0"}
    with pytest.raises(RecordError, match="record 1 .*steps/note is missing"):
        dataset.frame(3, ["note"])


def test_malformed_payload_raises(tmp_path):
    path = write_rlds(tmp_path, [episode()])
    path.write_bytes(path.read_bytes() + record(b"something else"))
    with pytest.raises(RecordError, match="record 1 .*not a tf.train.Example"):
        RLDSDataset(tmp_path)


@pytest.mark.parametrize("words", [{"steps/words/ragged_flat_values": [b"a", b"b", b"c"]}, {}])
def test_ragged_lengths_that_do_not_add_up_raise(tmp_path, words):
    payload = example({"steps/count": [0, 1], "steps/words/ragged_row_lengths_0": [1, 1], **words})
    path = write_rlds(tmp_path, [], steps={"count": STEPS["count"], "words": STEPS["note"]})
    description = features_json({"count": STEPS["count"], "words": STEPS["note"]})
    leaves = description["featuresDict"]["features"]["steps"]["sequence"]["feature"][
        "featuresDict"
    ]["features"]
    leaves["words"] = {"sequence": {"feature": leaves["words"]}}
    (tmp_path / "features.json").write_text(json.dumps(description))
    path.write_bytes(record(payload))
    with pytest.raises(RecordError, match="steps/words has another number of values"):
        RLDSDataset(tmp_path)


def test_dataset_with_more_files_than_the_open_file_limit(tmp_path):
    path = write_rlds(tmp_path, [episode()])
    data = path.read_bytes()
    path.unlink()
    for number in range(300):
        (tmp_path / f"handmade-train.tfrecord-{number:05d}-of-00300").write_bytes(data)
    code = (
        "import resource as r; hard = r.getrlimit(r.RLIMIT_NOFILE)[1];"
        "r.setrlimit(r.RLIMIT_NOFILE, (200, hard));"
        f"from etcvla.data.rlds import RLDSDataset; dataset = RLDSDataset({str(tmp_path)!r});"
        "print(dataset.where(299)[1], dataset.num_frames)"
    )
    assert python("-c", code).stdout.split() == ["0", "900"]


@pytest.mark.parametrize(
    "change",
    [
        {"action": np.zeros(5, np.float32)},
        {"note": [b"one"]},
        {"action": np.zeros(0, np.float32), "count": [], "image": [], "note": []},
    ],
)
def test_inconsistent_episodes_are_skipped_and_counted(tmp_path, change, caplog):
    write_rlds(tmp_path, [episode(2), {**episode(), **change}, episode(4, seed=9)])
    dataset = RLDSDataset(tmp_path, damaged="skip")
    assert (
        dataset.lengths.tolist() == [2, 4]
        and sum(dataset.skipped.values()) == 1
        and "record 1" in caplog.text
    )
    assert dataset.where(1)[1] == 2 and dataset.frame(2, ["note"])["note"] == "note 9 0"


def test_damaged_records_are_skipped_and_counted(tmp_path, caplog):
    path = write_rlds(tmp_path, [episode(2), episode(3), episode(4)])
    data = bytearray(path.read_bytes())
    data[-20] ^= 4
    path.write_bytes(data[: -(len(data) // 3)])
    with pytest.raises(RecordError, match=re.escape(f"{path}, record 2") + ".*truncated"):
        RLDSDataset(tmp_path)
    dataset = RLDSDataset(tmp_path, damaged="skip")
    assert dataset.lengths.tolist() == [2, 3] and dataset.skipped == {"damaged records": 1}
    with pytest.raises(ValueError, match="unknown data.on_damaged 'skipp', did you mean 'skip'"):
        RLDSDataset(tmp_path, damaged="skipp")


# Output


def test_describe_lists_every_feature(public):
    folder, splits = public
    dataset = RLDSDataset(folder)
    text = describe(dataset)
    assert f"{dataset.num_episodes:,} episodes" in text and all(
        f"  {name} " in text for name in dataset.features
    )


def test_command_line(folder):
    command = ("-m", "etcvla.data.rlds", str(folder))
    good = python(*command)
    bad = python(*command, "--split", "x")
    assert (
        good.returncode == 0 and "3 episodes, 9 frames" in good.stdout and "note 0 0" in good.stdout
    )
    assert bad.returncode == 1 and bad.stderr.startswith("error:") and "it has train" in bad.stderr
    assert "Traceback" not in bad.stderr
