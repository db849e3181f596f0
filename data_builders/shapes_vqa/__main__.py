"""Builds the shapes corpus: `python -m data_builders.shapes_vqa --out=DIR [--gallery=FILE.html]`.

What `tfds build` does, with choices. The dataset goes to <out>/shapes_vqa/<name>/<version>.
"""

from absl import app, flags

from data_builders.common import command
from data_builders.common.build import prepare
from data_builders.shapes_vqa.shapes_vqa_dataset_builder import Builder, ShapesConfig

command.output_flags()
command.beam_flag()
_NUMBERS = {
    field: flags.DEFINE_integer(field, getattr(ShapesConfig(), field), doc)
    for field, doc in {
        "train": "Images to train on.",
        "val": "Images held out.",
        "image_size": "Height and width in pixels.",
        "seed": "Another seed, other images.",
    }.items()
}


def main(argv: list[str]) -> None:
    command.run(
        argv,
        lambda: prepare(
            Builder,
            ShapesConfig(**{field: flag.value for field, flag in _NUMBERS.items()}),
            command.FLAGS.out,
            command.FLAGS.beam,
        ),
        frames=48,
    )


if __name__ == "__main__":
    app.run(main)
