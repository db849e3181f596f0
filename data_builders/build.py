"""What every builder here does around its examples: say how far it is, and fail in words."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

# Or TensorFlow greets with a page about the CPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402
from absl import logging  # noqa: E402

T = TypeVar("T")


def progress(items: Iterable[T], *, total: int, what: str, every: float = 2.0) -> Iterator[T]:
    """Passes `items` on and prints count, rate and remaining time to stderr, at most once in `every` seconds."""
    start = shown = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= every or count == total:
            shown, rate = now, count / max(now - start, 1e-9)
            print(f"{what}: {count}/{total}, {rate:.1f}/s, {(total - count) / rate:.0f} s left", file=sys.stderr)


def prepare(builder_class: type[tfds.core.DatasetBuilder], config: tfds.core.BuilderConfig, out: str) -> Path:
    """Builds a dataset under the directory `out` unless it is there, and returns its path.

    TFDS writes to a directory of another name and renames it at the end, so that what is found under the final name
    is whole. Raises OSError that names the directory if the disk is full or not writable.
    """
    tfds.disable_progress_bar()
    logging.set_verbosity(logging.ERROR)
    known = config.name in builder_class.builder_configs  # which TFDS wants by name
    builder = builder_class(config=config.name if known else config, data_dir=out)
    path, name = Path(builder.data_dir), builder.info.full_name
    if (path / "dataset_info.json").exists():
        print(f"{name}: already built in {path}; delete it to build it again", file=sys.stderr)
        return path
    start = time.monotonic()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The directory of downloads stays empty: TFDS would make one beside the dataset.
        with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_dir=downloads,
                                         download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except Exception as error:
        if not (cause := _system_error(error)):
            raise
        raise OSError(f"{name}: building {path} failed ({_free(path)} left): {cause}") from error
    size = sum(file.stat().st_size for file in path.rglob("*")) / 1e6
    splits = ", ".join(f"{split} {info.num_examples}" for split, info in builder.info.splits.items())
    print(f"{name}: {splits} episodes, {size:.1f} MB, {time.monotonic() - start:.0f} s, in {path}", file=sys.stderr)
    return path


def _system_error(error: BaseException | None) -> BaseException | None:
    """The operating system's complaint at the bottom of an exception: TFDS wraps it in others."""
    while error and not isinstance(error, (OSError, tf.errors.OpError)):
        error = error.__cause__ or error.__context__
    return error


def _free(path: Path) -> str:
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    return f"{shutil.disk_usage(existing).free / 1e6:.0f} MB"
