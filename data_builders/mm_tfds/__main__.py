"""Imports a prepared TFDS set: `python -m data_builders.mm_tfds --data=DIR --answer=FIELD --out=DIR`.

The dataset goes to <out>/mm_tfds/<its name>/<version>; a stage's stream of kind "any" draws from it.
"""

from absl import app, flags

from data_builders.common.mm_command import common_flags, run
from data_builders.mm_tfds.mm_tfds_dataset_builder import Builder, TfdsConfig

_DATA = flags.DEFINE_string("data", None, "Version folder of the prepared dataset.", required=True)
_FIELDS = {
    name: flags.DEFINE_string(name, getattr(TfdsConfig(name="-"), name), text)
    for name, text in {
        "split": "The part to take.",
        "image": "Feature with the image.",
        "answer": "Feature with the answer or caption.",
        "question": "Feature with the question; none: --ask.",
        "ask": "Question for every image.",
    }.items()
}
_COMMON = common_flags()


def main(argv: list[str]) -> None:
    run(
        argv,
        Builder,
        lambda: TfdsConfig(
            data=_DATA.value, **{name: flag.value for name, flag in _FIELDS.items()}, **_COMMON()
        ),
    )


if __name__ == "__main__":
    app.run(main)
