"""Build pictures of the tabletop with questions in <out>/tabletop_vqa/<name>/<version>.

    python -m data_builders.tabletop_vqa --out=DIR [--gallery=FILE.html]

`tfds build data_builders/tabletop_vqa` builds the default dataset too.
"""

from pathlib import Path

from absl import app, flags

from data_builders.common import command

command.define_picture_flags(episodes=16_000, val_episodes=500)
flags.DEFINE_integer("workers", 0, "Number of worker processes; 0: one per CPU core.")
flags.adopt_module_key_flags(command)


def main(argv: list[str]) -> None:
    """Run the command."""
    command.run_builder(argv, _build, gallery_frames=48)


def _build() -> Path:
    from data_builders.common.build import prepare
    from data_builders.tabletop_vqa.tabletop_vqa_dataset_builder import Builder, TableConfig
    from etcvla.sims.headless import check_rendering

    check_rendering()
    if command.FLAGS.workers:
        Builder.workers = command.FLAGS.workers
    config = TableConfig(**command.picture_settings())
    return prepare(Builder, config, command.FLAGS.out, command.FLAGS.beam)


if __name__ == "__main__":
    app.run(main)
