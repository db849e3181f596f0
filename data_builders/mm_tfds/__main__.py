"""Import an image-text dataset that TFDS has prepared into <out>/mm_tfds/<its name>/<version>.

    python -m data_builders.mm_tfds --data=DIR --answer=FIELD --out=DIR

A stream of kind "any" in a training stage draws from the dataset.
"""

from pathlib import Path

from absl import app, flags

from data_builders.common import command, mm_command

_DATA = flags.DEFINE_string("data", None, "Version folder of the prepared dataset.", required=True)
_SPLIT = flags.DEFINE_string("split", "train", "Split to read.")
_IMAGE = flags.DEFINE_string("image", "image", "Feature with the image; nested: a/b.")
_ANSWER = flags.DEFINE_string("answer", "text", "Feature with the answer or caption.")
_QUESTION = flags.DEFINE_string("question", "", "Feature with the question; empty: see --prompt.")
_PROMPT = flags.DEFINE_string(
    "prompt", "describe the image.", "Question for every image if --question is empty."
)
mm_command.define_importer_flags()
flags.adopt_module_key_flags(command)
flags.adopt_module_key_flags(mm_command)


def main(argv: list[str]) -> None:
    """Run the command."""
    command.run_builder(argv, _build)


def _build() -> Path:
    from data_builders.common.build import prepare
    from data_builders.mm_tfds.mm_tfds_dataset_builder import Builder, TfdsConfig

    config = TfdsConfig(
        data=_DATA.value,
        split=_SPLIT.value,
        image=_IMAGE.value,
        answer=_ANSWER.value,
        question=_QUESTION.value,
        prompt=_PROMPT.value,
        **mm_command.importer_settings(),
    )
    return prepare(Builder, config, command.FLAGS.out)


if __name__ == "__main__":
    app.run(main)
