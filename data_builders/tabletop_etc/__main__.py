"""Build tabletop demonstrations in <out>/tabletop_etc/<name>/<version>.

    python -m data_builders.tabletop_etc --role=demos --out=DIR [--gallery=FILE.html]

`tfds build data_builders/tabletop_etc` builds the default datasets of rotation 0 too.
"""

from pathlib import Path

from absl import app, flags

from data_builders.common import command

_ROLE = flags.DEFINE_string(
    "role",
    "demos",
    "demos: words of tier A, with actions; etc: words of A and B, without actions; ood: words of A "
    "and N, without actions.",
)
_ROTATION = flags.DEFINE_integer("rotation", 0, "Rotation of the words of the tiers.")
_TASKS = flags.DEFINE_list("tasks", ["touch"], "Names of tasks.")
_EPISODES = flags.DEFINE_integer(
    "episodes", 0, "Training episodes per task; 0: 1200 for demos, 600 for etc, 400 for ood."
)
command.define_simulator_flags(image_size=96, noise=("0.1", "0.4"))
flags.adopt_module_key_flags(command)


def main(argv: list[str]) -> None:
    """Run the command."""
    command.run_builder(argv, _build)


def _build() -> Path:
    from data_builders.tabletop_etc.tabletop_etc_dataset_builder import Builder, TabletopConfig

    config = TabletopConfig(
        role=_ROLE.value,
        rotation=_ROTATION.value,
        tasks=tuple(_TASKS.value),
        episodes=_EPISODES.value,
        **command.simulator_settings(),
    )
    return command.build_simulated(Builder, config)


if __name__ == "__main__":
    app.run(main)
