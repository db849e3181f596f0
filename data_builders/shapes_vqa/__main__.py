"""Build the dataset of 2-D shapes in <out>/shapes_vqa/<name>/<version>.

    python -m data_builders.shapes_vqa --out=DIR [--gallery=FILE.html]

`tfds build data_builders/shapes_vqa` builds the default dataset too.
"""

from pathlib import Path

from absl import app, flags

from data_builders.common import command

_EPISODES = flags.DEFINE_integer("episodes", 6000, "Training images; an image is one episode.")
_VAL_EPISODES = flags.DEFINE_integer("val_episodes", 400, "Validation images.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 96, "Height and width of images in pixels.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all images.")
command.define_output_flags()
command.define_beam_flag()
flags.adopt_module_key_flags(command)


def main(argv: list[str]) -> None:
    """Run the command."""
    command.run_builder(argv, _build, gallery_frames=48)


def _build() -> Path:
    from data_builders.common.build import prepare
    from data_builders.shapes_vqa.shapes_vqa_dataset_builder import Builder, ShapesConfig

    config = ShapesConfig(
        episodes=_EPISODES.value,
        val_episodes=_VAL_EPISODES.value,
        image_size=_IMAGE_SIZE.value,
        seed=_SEED.value,
    )
    return prepare(Builder, config, command.FLAGS.out, command.FLAGS.beam)


if __name__ == "__main__":
    app.run(main)
