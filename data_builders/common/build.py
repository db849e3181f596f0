"""What every builder here does around its examples: say how far it is, fail in words, leave nothing half."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import example_serializer

T = TypeVar("T")


class SameBytes(tfds.core.ExampleSerializer):
    """Features by name: the order that protobuf gives a record is another one in each process."""

    def serialize_example(self, example: Any) -> bytes:
        return self.get_tf_example(example).SerializeToString(deterministic=True)


class EpisodeBuilder(tfds.core.GeneratorBasedBuilder):
    """A builder whose files hold the same bytes whenever and wherever they are made.

    It makes its episodes here or, if TFDS is given options for it, by Apache Beam on many machines.

    Attributes:
      by_beam: set before `_split_generators` is asked, which then returns `beam_examples` for every split.
    """

    by_beam = False

    def _download_and_prepare(self, dl_manager, download_config):
        self.by_beam = bool(download_config.beam_options or download_config.beam_runner)
        # TFDS has no setting for it. Beam's machines are sent the instance, and with it the class's name.
        usual, example_serializer.ExampleSerializer = (
            example_serializer.ExampleSerializer,
            SameBytes,
        )
        try:
            super()._download_and_prepare(dl_manager, download_config)
        finally:
            example_serializer.ExampleSerializer = usual


def beam_examples(jobs: Sequence[Any], *steps: Callable[[Any], Any]):
    """A Beam transform that makes an example of each job, by the functions that a plain build calls one by one.

    Where a step returns None there is no example.
    """
    import apache_beam as beam  # an extra, which a plain build does without

    examples = beam.Create(list(jobs)) | beam.Reshuffle()
    for number, step in enumerate(steps):
        examples |= f"step {number}" >> beam.Map(step)
        examples |= f"made by {number}" >> beam.Filter(_is_made)
    return examples


def _is_made(example: Any) -> bool:
    return example is not None


def provenance(
    config: tfds.core.BuilderConfig, packages: Sequence[str], seeds: str
) -> tfds.core.MetadataDict:
    """What TFDS keeps beside the data as metadata.json."""
    return tfds.core.MetadataDict(made_by(dataclasses.asdict(config), packages, seeds))


def made_by(config: Mapping[str, Any], packages: Sequence[str], seeds: str) -> dict[str, Any]:
    """How a dataset was made: day, this code's commit, versions of packages, config, seeding in words."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "seeds": seeds,
        "config": {
            key: _anywhere(value)
            for key, value in config.items()
            if value not in (None, "", [], ())
        },
        "versions": {name: _version(name) for name in sorted({*packages, "tensorflow-datasets"})},
    }


def _anywhere(value: Any) -> Any:
    """A path without its folders: they are this machine's, and nobody else's business."""
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # on the path, but not installed
        return "unknown"


def _commit() -> str:
    """The commit that is checked out, "-dirty" if files differ from it; outside a clone the package's version."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"etcvla {_version('etcvla')}"


def progress(items: Iterable[T], *, total: int, what: str, every: float = 2.0) -> Iterator[T]:
    """Passes `items` on and prints count, rate and remaining time to stderr, at most once in `every` seconds."""
    start = shown = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= every or count == total:
            shown, rate = now, count / max(now - start, 1e-9)
            print(
                f"{what}: {count}/{total}, {rate:.1f}/s, {(total - count) / rate:.0f} s left",
                file=sys.stderr,
            )


def prepare(
    builder_class: type[tfds.core.DatasetBuilder],
    config: tfds.core.BuilderConfig,
    out: str,
    beam: Sequence[str] = (),
) -> Path:
    """Builds a dataset under the directory `out` unless it is there, and returns its path.

    TFDS writes to a directory of another name and renames it at the end, so that what is found under the final name
    is whole. What a killed build left under such a name is removed first.

    Args:
      beam: options of Apache Beam without dashes ("runner=DirectRunner"); if given, it makes the episodes.

    Raises:
      OSError: names the directory if the disk is full or not writable, or another process builds the same dataset.
    """
    tfds.disable_progress_bar()
    logging.set_verbosity(logging.ERROR)
    known = builder_class.builder_configs.get(config.name) == config  # which TFDS wants by name
    builder = builder_class(config=config.name if known else config, data_dir=out)
    path, name = Path(builder.data_dir), builder.info.full_name
    if (path / "dataset_info.json").exists():
        print(f"{name}: already built in {path}; delete it to build it again", file=sys.stderr)
        return path
    start = time.monotonic()
    try:
        # The directory of downloads stays empty: TFDS would make one beside the dataset.
        with (
            alone(path),
            tempfile.TemporaryDirectory() as downloads,
            contextlib.redirect_stdout(sys.stderr),
        ):
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(
                    try_download_gcs=False, beam_options=_beam_options(beam)
                ),
            )
    except Exception as error:
        if not (cause := _system_error(error)):
            raise
        raise OSError(
            f"{name}: building {path} failed, and what was made of it is removed: {cause} (free there "
            f"now: {_free(path)})"
        ) from error
    size = sum(file.stat().st_size for file in path.rglob("*")) / 1e6
    splits = ", ".join(
        f"{split} {info.num_examples}" for split, info in builder.info.splits.items()
    )
    print(
        f"{name}: {splits} episodes, {size:.1f} MB, {time.monotonic() - start:.0f} s, in {path}",
        file=sys.stderr,
    )
    return path


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps other builds of the dataset `path` out, and removes what killed ones left beside it.

    The lock is the kernel's, so that it does not outlive its process. Raises BlockingIOError if another holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process is building {path}") from None
        for left in path.parent.glob(f"incomplete.*_{path.name}"):
            print(f"removing {left}, which a killed build left", file=sys.stderr)
            shutil.rmtree(left)
        yield


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A directory to write to that becomes `path` at the end, or vanishes if something goes wrong."""
    with alone(path):
        made = path.parent / f"incomplete.{os.getpid()}_{path.name}"
        made.mkdir()
        try:
            yield made
            made.rename(path)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _beam_options(options: Sequence[str]):
    if not options:
        return None
    from apache_beam.options.pipeline_options import PipelineOptions

    return PipelineOptions(flags=[f"--{option}" for option in options])


def _system_error(error: BaseException | None) -> BaseException | None:
    """The operating system's complaint at the bottom of an exception: TFDS wraps it in others."""
    while error and not isinstance(error, (OSError, tf.errors.OpError)):
        error = error.__cause__ or error.__context__
    return error


def _free(path: Path) -> str:
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    return f"{shutil.disk_usage(existing).free / 1e6:.0f} MB"
