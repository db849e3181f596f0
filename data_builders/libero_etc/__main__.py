"""Build LIBERO demonstrations in <out>/libero_etc/<name>/<version>.

    python -m data_builders.libero_etc --tasks=libero_object --out=DIR [--gallery=FILE.html]

With --data=DIR the builder replays LIBERO's own HDF5 demonstrations; without it the scripted expert
acts. `tfds build data_builders/libero_etc` builds the default datasets too.
"""

from pathlib import Path

from absl import app, flags

from data_builders.common import command

_TASKS = flags.DEFINE_list("tasks", ["libero_object"], "Suites, suite/name or suite/index.")
_DATA = flags.DEFINE_string(
    "data", "", "LIBERO's HDF5 file, or a folder of them; empty: the scripted expert acts."
)
_SCENE = flags.DEFINE_string(
    "scene", "rlds", "rlds: images flipped as in the public RLDS datasets; or upright."
)
_EPISODES = flags.DEFINE_integer(
    "episodes", 0, "Training episodes per task; 0: all of a file, or 20 of the expert."
)
command.define_simulator_flags(image_size=224, noise=("0", "0.1"))
flags.adopt_module_key_flags(command)


def main(argv: list[str]) -> None:
    """Run the command."""
    command.run_builder(argv, _build)


def _build() -> Path:
    from data_builders.libero_etc.libero_etc_dataset_builder import Builder, LiberoConfig

    config = LiberoConfig(
        tasks=tuple(_TASKS.value),
        scene=_SCENE.value,
        data=_DATA.value,
        episodes=_EPISODES.value,
        **command.simulator_settings(),
    )
    return command.build_simulated(Builder, config)


if __name__ == "__main__":
    app.run(main)
