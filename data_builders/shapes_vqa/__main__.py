"""Builds the shapes corpus: `python -m data_builders.shapes_vqa --out=DIR [--gallery=FILE.html]`.

What `tfds build` does, with choices. The dataset goes to <out>/shapes_vqa/<name>/<version>.
"""

import sys

from absl import app, flags

from data_builders.build import prepare
from data_builders.shapes_vqa.shapes_vqa_dataset_builder import Builder, ShapesConfig, make_image
from etcvla.etc.gallery import Entry, write_gallery

GALLERY_FRAMES = 48
_OUT = flags.DEFINE_string("out", None, "Directory of datasets.", required=True)
_GALLERY = flags.DEFINE_string("gallery", None, f"HTML file to write, with the first {GALLERY_FRAMES} images.")
_NUMBERS = {field: flags.DEFINE_integer(field, getattr(ShapesConfig(), field), doc) for field, doc in {
    "train": "Images to train on.", "val": "Images held out.", "image_size": "Height and width in pixels.",
    "seed": "Another seed, other images."}.items()}


def gallery_entries(config: ShapesConfig, count: int) -> list[Entry]:
    """The first training images with their questions, made again."""
    made = [make_image("train", i, seed=config.seed, image_size=config.image_size) for i in range(count)]
    return [Entry(image, items, caption=name) for name, image, _, items in made]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        config = ShapesConfig(**{field: flag.value for field, flag in _NUMBERS.items()})
        print(prepare(Builder, config, _OUT.value))
        if _GALLERY.value:
            entries = gallery_entries(config, min(config.train, GALLERY_FRAMES))
            write_gallery(_GALLERY.value, entries, "2-D shapes")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
