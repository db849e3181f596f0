"""Imports llava-style JSON: `python -m data_builders.mm_llava --json=FILE --images=FOLDER --out=DIR`.

The dataset goes to <out>/mm_llava/<the file's name>/<version>; a stage's stream of kind "any" draws from it.
"""

from absl import app, flags

from data_builders.common.mm_command import common_flags, run
from data_builders.mm_llava.mm_llava_dataset_builder import Builder, LlavaConfig

_JSON = flags.DEFINE_string("json", None, "A list of entries, or one entry a line.", required=True)
_IMAGES = flags.DEFINE_string(
    "images", None, "Folder that the entries' image paths start from.", required=True
)
_KIND_FIELD = flags.DEFINE_string("kind_field", "", "Field of an entry that names its items' kind.")
_COMMON = common_flags()


def main(argv: list[str]) -> None:
    run(
        argv,
        Builder,
        lambda: LlavaConfig(
            json=_JSON.value, images=_IMAGES.value, kind_field=_KIND_FIELD.value, **_COMMON()
        ),
    )


if __name__ == "__main__":
    app.run(main)
