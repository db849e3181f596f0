"""Build the dataset of 2-D shapes in <out>/shapes_vqa/<name>/<version>.

    python -m data_builders.shapes_vqa --out=DIR [--gallery=FILE.html]

`tfds build data_builders/shapes_vqa` builds the default dataset too.
"""

from pathlib import Path

from absl import app, flags

from data_builders.common import command

command.define_picture_flags(episodes=6000, val_episodes=400)
flags.adopt_module_key_flags(command)


def main(argv: list[str]) -> None:
    """Run the command."""
    command.run_builder(argv, _build, gallery_frames=48)


def _build() -> Path:
    from data_builders.common.build import prepare
    from data_builders.shapes_vqa.shapes_vqa_dataset_builder import Builder, ShapesConfig

    config = ShapesConfig(**command.picture_settings())
    return prepare(Builder, config, command.FLAGS.out, command.FLAGS.beam)


if __name__ == "__main__":
    app.run(main)
