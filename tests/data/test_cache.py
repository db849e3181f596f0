"""Arrays computed from a split's files are cached, mapped, and computed again if files change."""

import pickle

import numpy as np
import pytest

from etcvla.data.adapted_dataset import AdaptedDataset
from etcvla.data.adapters import ADAPTERS, Adapter
from etcvla.data.episodes import MAX_CACHED_WIDTH
from etcvla.data.rlds import RLDSDataset
from etcvla.data.stage_dataset import StageDataset
from tests.data.handmade_rlds import KINDS, robot_episode, robot_steps, write_rlds, write_robot_set

ADAPTER = Adapter(
    cameras={"front": "observation/front"},
    state=("observation/state", "action"),
    step_filter="first_zero",
    idle_steps=2,
)


@pytest.fixture
def folder(tmp_path):
    return write_robot_set(tmp_path)


def forbid_reading(monkeypatch):
    for name in ("steps", "_all_floats"):
        monkeypatch.setattr(RLDSDataset, name, None)


def test_column_is_read_from_files_once(folder, monkeypatch):
    first = RLDSDataset(folder)
    column = first.column("action")
    chunk, present = first.window(5, "action", 4)
    forbid_reading(monkeypatch)
    again = RLDSDataset(folder)
    for dataset in (again, pickle.loads(pickle.dumps(again))):
        mapped = dataset.column("action")
        np.testing.assert_array_equal(mapped, column)
        assert isinstance(mapped.base, np.memmap) and not mapped.flags.writeable
        np.testing.assert_array_equal(dataset.window(5, "action", 4)[0], chunk)
        np.testing.assert_array_equal(dataset.window(5, "action", 4)[1], present)


def test_frames_from_cached_columns_equal_frames_from_files(folder):
    fresh = RLDSDataset(folder)
    names = ["action", "observation/state"]
    read = [fresh.frame(frame, names) for frame in range(fresh.num_frames)]
    windows = [fresh.window(frame, "action", 5) for frame in range(fresh.num_frames)]
    for name in names:
        assert fresh.cached_column(name) is None
        fresh.column(name)
        assert fresh.cached_column(name) is not None
    for frame, values in enumerate(read):
        for name in names:
            np.testing.assert_array_equal(fresh.frame(frame, names)[name], values[name])
        for got, want in zip(fresh.window(frame, "action", 5), windows[frame], strict=True):
            np.testing.assert_array_equal(got, want)
            assert got.dtype == want.dtype


def test_column_of_changed_files_is_read_again(folder):
    before = RLDSDataset(folder).column("action")
    write_rlds(folder, [robot_episode(number + 9) for number in range(4)], steps=robot_steps())
    after = RLDSDataset(folder).column("action")
    assert after.shape == before.shape and (after != before).any()


def test_dataset_without_its_damaged_episodes_has_separate_columns(tmp_path):
    damaged = robot_episode(1) | {"language_instruction": [b"short"]}
    episodes = [robot_episode(0), damaged, robot_episode(2)]
    write_rlds(tmp_path, episodes, steps=robot_steps())
    part = RLDSDataset(tmp_path, damaged="skip")
    assert part.num_frames == 14
    expected = np.concatenate([episodes[0]["action"], episodes[2]["action"]]).reshape(14, 2)
    np.testing.assert_array_equal(part.column("action"), expected)
    assert list((tmp_path / ".etcvla" / "train").glob("*/action"))  # not that of the whole split
    np.testing.assert_array_equal(RLDSDataset(tmp_path, damaged="skip").column("action"), expected)


def test_wide_tensors_and_texts_are_not_cached(tmp_path):
    wide = MAX_CACHED_WIDTH + 1
    steps = {
        "embedding": (
            "tensor.Tensor",
            {"tensor": {"dtype": "float32", "shape": {"dimensions": [str(wide)]}}},
        ),
        "note": ("text.Text", {"text": {}}),
    }
    write_rlds(
        tmp_path,
        [{"embedding": np.arange(2 * wide, dtype=np.float32), "note": [b"a", b"b"]}],
        steps=steps,
    )
    dataset = RLDSDataset(tmp_path)
    assert dataset.column("embedding").shape == (2, wide) and dataset.column("note") == ["a", "b"]
    assert dataset.cached_column("embedding") is None and dataset.cached_column("note") is None


def test_adapter_filters_run_once(folder, monkeypatch):
    stored = RLDSDataset(folder)
    first = AdaptedDataset(stored, ADAPTER)
    state = first.column("observation/state")
    action = first.column("action")
    may_start = first.may_start()
    assert state.shape == (28, 5)
    np.testing.assert_array_equal(stored.column("action"), action)
    other = AdaptedDataset(
        stored, Adapter(cameras={"front": "observation/front"}, affine=((0, 2.0, 0.0),))
    )
    np.testing.assert_allclose(other.column("action")[:, 0], 2 * action[:, 0])
    forbid_reading(monkeypatch)
    again = pickle.loads(pickle.dumps(AdaptedDataset(RLDSDataset(folder), ADAPTER)))
    np.testing.assert_array_equal(again.column("observation/state"), state)
    np.testing.assert_array_equal(again.column("action"), action)
    np.testing.assert_array_equal(again.may_start(), may_start)


def test_item_kinds_are_read_once(folder, monkeypatch):
    first = StageDataset(RLDSDataset(folder), ("front",))
    drawn = {kind: first.candidates(kind).tolist() for kind in (*KINDS, "any")}
    assert drawn["any"] == list(range(28)) and first.known_kinds == sorted(KINDS)
    forbid_reading(monkeypatch)
    again = StageDataset(RLDSDataset(folder), ("front",))
    assert {kind: again.candidates(kind).tolist() for kind in drawn} == drawn
    with pytest.raises(ValueError, match="no items of kind 'afordance'; it has"):
        again.candidates("afordance")


def test_unwritable_cache_is_logged_and_column_still_works(folder, monkeypatch, caplog):
    (folder / ".etcvla").touch()  # even root cannot write below a file
    monkeypatch.setenv("ETCVLA_INDEX", str(folder / ".etcvla" / "apart"))
    dataset = RLDSDataset(folder)
    column = dataset.column("action")
    assert "action is computed again" in caplog.text and not column.flags.writeable
    np.testing.assert_array_equal(column, RLDSDataset(folder).column("action"))
    assert dataset.column("action") is column


def test_adapter_digests_are_unique():
    assert len({adapter.digest for adapter in ADAPTERS.values()}) == len(ADAPTERS)
