"""The loader benchmark's sides give the same samples, and its numbers are of what they say."""

import os

import numpy as np
import pytest

from etcvla.bench import loader

pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return loader.write_set(tmp_path_factory.mktemp("bench"), 1)


def test_the_set_is_like_libero_and_written_once(folder):
    (file,) = folder.glob("*.tfrecord-*")
    assert 40_000 < file.stat().st_size / loader.STEPS < 90_000
    stamp = file.stat().st_mtime_ns
    assert loader.write_set(folder.parent, 1) == folder and file.stat().st_mtime_ns == stamp


def test_both_sides_give_the_same_samples(folder, monkeypatch):
    monkeypatch.setattr(loader, "BUFFER", 10)
    dataset = loader.RLDSDataset(folder)
    raw = {tuple(action): frame for frame, action in enumerate(dataset.column("action").round(4))}
    path = str(folder)
    for side in (
        loader.OurLoader(path, 1),
        loader.TFData(path, 1, False),
        loader.TFData(path, 1, True),
    ):
        batch = next(side.open())
        own = isinstance(side, loader.OurLoader)
        assert batch["images"].shape == (loader.BATCH, 2, loader.SIZE, loader.SIZE, 3)
        chunk_shape = (loader.HORIZON, loader.ACTION)
        if own:  # with an axis of action segments
            assert batch["actions"].shape == (loader.BATCH, 1, *chunk_shape)
            continue
        assert batch["actions"].shape == (loader.BATCH, *chunk_shape)
        for row in range(3):
            frame = raw[tuple(batch["actions"][row, 0].round(4))]
            chunk, _ = dataset.window(frame, "action", loader.HORIZON)
            np.testing.assert_allclose(batch["actions"][row], chunk, rtol=1e-6)
            image = dataset.frame(frame, ["observation/wrist_image"])["observation/wrist_image"]
            # TensorFlow's fast decoding transform is a few grey levels off.
            assert np.abs(image.astype(int) - batch["images"][row, 1]).mean() < 3


def test_memory_is_what_a_process_holds():
    before = loader.anonymous_memory(os.getpid())
    held = np.ones(50 << 20, np.uint8)
    assert 45 < loader.anonymous_memory(os.getpid()) - before < 60 and held.any()


def test_the_table_says_what_was_missed():
    result = {
        f"{side}_{key}": 1.0
        for side in ("ours", "tf")
        for key in ("rate", "wall_rate", "memory", "first_batch")
    }
    text = loader.table(result | {"rate_ratio": 1.3, "memory_ratio": 0.5, "first_batch_ratio": 0.1})
    assert [line.split()[-1] for line in text.splitlines()[-3:]] == ["met", "MISSED", "met"]
