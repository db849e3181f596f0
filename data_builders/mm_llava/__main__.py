"""Import LLaVA-style JSON into <out>/mm_llava/<name of the file>/<version>.

    python -m data_builders.mm_llava --data=FILE --images=FOLDER --out=DIR

A stream of kind "any" in a training stage draws from the dataset.
"""

from pathlib import Path

from absl import app, flags

from data_builders.common import command, mm_command

_DATA = flags.DEFINE_string(
    "data", None, "JSON file: a list of entries, or one entry per line.", required=True
)
_IMAGES = flags.DEFINE_string(
    "images", None, "Folder to which the image paths in the entries are relative.", required=True
)
_KIND_FIELD = flags.DEFINE_string("kind_field", "", "Field of an entry with the kind of its items.")
mm_command.define_importer_flags()
flags.adopt_module_key_flags(command)
flags.adopt_module_key_flags(mm_command)


def main(argv: list[str]) -> None:
    """Run the command."""
    command.run_builder(argv, _build)


def _build() -> Path:
    from data_builders.common.build import prepare
    from data_builders.mm_llava.mm_llava_dataset_builder import Builder, LlavaConfig

    config = LlavaConfig(
        data=_DATA.value,
        images=_IMAGES.value,
        kind_field=_KIND_FIELD.value,
        **mm_command.importer_settings(),
    )
    return prepare(Builder, config, command.FLAGS.out)


if __name__ == "__main__":
    app.run(main)
