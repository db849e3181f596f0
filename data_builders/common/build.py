"""Base class of all builders, and `prepare`, which builds a dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import example_serializer

from data_builders.common.folders import lock_build
from data_builders.common.metadata import build_metadata
from etcvla.errors import UserError


class DeterministicSerializer(tfds.core.ExampleSerializer):
    """Serializer that writes the features of a record sorted by name.

    Without it protobuf's order differs from process to process.
    """

    def serialize_example(self, example: Any) -> bytes:
        """Return the bytes of a tf.train.Example."""
        return self.get_tf_example(example).SerializeToString(deterministic=True)


class EpisodeBuilder(tfds.core.GeneratorBasedBuilder):
    """Builder whose files have the same bytes whenever and wherever they are built.

    It makes its episodes in this process or, if TFDS gets Beam options, on Apache Beam's machines.

    Attributes:
      use_beam: set before TFDS calls `_split_generators`, which then must return `beam_examples`
        for every split.
    """

    use_beam = False

    def provenance(self, packages: Sequence[str], seeding: str) -> tfds.core.MetadataDict:
        """Return the content of metadata.json; see `build_metadata`."""
        config = dataclasses.asdict(self.builder_config)
        return tfds.core.MetadataDict(build_metadata(config, packages, seeding))

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig,
    ) -> None:
        self.use_beam = bool(download_config.beam_options or download_config.beam_runner)
        # TFDS has no option for the serializer. Beam pickles the serializer's instance together
        # with its class, so that other machines use it too.
        original = example_serializer.ExampleSerializer
        example_serializer.ExampleSerializer = DeterministicSerializer
        try:
            super()._download_and_prepare(dl_manager, download_config)
        finally:
            example_serializer.ExampleSerializer = original


def beam_examples(jobs: Sequence[Any], *steps: Callable[[Any], Any]):
    """Return a Beam transform that applies `steps` to each job, one after another.

    The steps are the functions that a build without Beam calls. A result of None is no example.
    """
    import apache_beam as beam  # an optional dependency

    examples = beam.Create(list(jobs)) | beam.Reshuffle()
    for number, step in enumerate(steps):
        examples |= f"step {number}" >> beam.Map(step)
        examples |= f"results of step {number}" >> beam.Filter(_is_not_none)
    return examples


def _is_not_none(example: Any) -> bool:
    return example is not None


def prepare(
    builder_class: type[tfds.core.DatasetBuilder],
    config: tfds.core.BuilderConfig,
    out: str,
    beam: Sequence[str] = (),
) -> Path:
    """Build a dataset below the folder `out`, unless it exists, and return its version folder.

    TFDS writes to a temporary folder and renames it at the end, so that a dataset under its final
    name is complete. Temporary folders of killed builds are removed first.

    Args:
      beam: Apache Beam's options without dashes ("runner=DirectRunner"); with options, Beam makes
        the episodes.

    Raises UserError if the disk is full or not writable, and if another process builds the dataset.
    """
    tfds.disable_progress_bar()
    logging.set_verbosity(logging.ERROR)
    builder = _make_builder(builder_class, config, out)
    name = builder.info.full_name
    path = Path(builder.data_dir)
    if (path / "dataset_info.json").exists():
        print(f"{name}: already built in {path}; delete it to build it again", file=sys.stderr)
        return path
    start = time.monotonic()
    try:
        _download_and_prepare(builder, path, beam)
    except UserError:
        raise
    except Exception as error:
        cause = _find_system_error(error)
        if cause is None:
            raise
        raise UserError(
            f"building {name} in {path} failed, partial files are removed: {cause} "
            f"(free disk space: {_free_megabytes(path):.0f} MB)"
        ) from error
    _print_summary(builder, path, time.monotonic() - start)
    return path


def _make_builder(
    builder_class: type[tfds.core.DatasetBuilder], config: tfds.core.BuilderConfig, out: str
) -> tfds.core.DatasetBuilder:
    """Return the builder. TFDS accepts the configs that a builder registers by name only."""
    is_registered = builder_class.builder_configs.get(config.name) == config
    return builder_class(config=config.name if is_registered else config, data_dir=out)


def _download_and_prepare(
    builder: tfds.core.DatasetBuilder, path: Path, beam: Sequence[str]
) -> None:
    beam_options = None
    if beam:
        from apache_beam.options.pipeline_options import PipelineOptions

        beam_options = PipelineOptions(flags=[f"--{option}" for option in beam])
    # Without a download folder of its own TFDS creates one beside the dataset. TFDS also prints to
    # stdout, which must hold nothing but the dataset's path.
    with (
        lock_build(path),
        tempfile.TemporaryDirectory() as downloads,
        contextlib.redirect_stdout(sys.stderr),
    ):
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(
                try_download_gcs=False, beam_options=beam_options
            ),
        )


def _print_summary(builder: tfds.core.DatasetBuilder, path: Path, seconds: float) -> None:
    megabytes = sum(file.stat().st_size for file in path.rglob("*")) / 1e6
    counts = [f"{split} {info.num_examples}" for split, info in builder.info.splits.items()]
    print(
        f"{builder.info.full_name}: {', '.join(counts)} episodes, {megabytes:.1f} MB, "
        f"{seconds:.0f} s, in {path}",
        file=sys.stderr,
    )


def _find_system_error(error: BaseException | None) -> BaseException | None:
    """Return the operating system's error behind `error`; TFDS wraps it in other exceptions."""
    while error and not isinstance(error, (OSError, tf.errors.OpError)):
        error = error.__cause__ or error.__context__
    return error


def _free_megabytes(path: Path) -> float:
    existing = next(folder for folder in [path, *path.parents] if folder.exists())
    return shutil.disk_usage(existing).free / 1e6
