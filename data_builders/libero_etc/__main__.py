"""Builds LIBERO demonstrations: `python -m data_builders.libero_etc --tasks=libero_object --out=DIR [--gallery=FILE]`.

What `tfds build` does, with choices. With `--demos=DIR` LIBERO's own HDF5 demonstrations are shown again; without, the
scripted expert acts. The dataset goes to <out>/libero_etc/<name>/<version>.
"""

from absl import app, flags

from data_builders.common import command
from data_builders.libero_etc.libero_etc_dataset_builder import EPISODES, Builder, LiberoConfig

_TASKS = flags.DEFINE_list("tasks", ["libero_object"], "Suites, suite/name or suite/index.")
_DEMOS = flags.DEFINE_string(
    "demos", "", "LIBERO's HDF5 file or a directory of them; empty: the expert acts."
)
_DOMAIN = flags.DEFINE_string(
    "scene", "rlds", "Images as the public data sets turn them (rlds), or upright."
)
_EPISODES = flags.DEFINE_integer(
    "episodes", 0, f"Training episodes a task; 0: all of a file, else {EPISODES}."
)
_SHARED = command.simulator_flags(image_size=224, noise=("0", "0.1"))


def main(argv: list[str]) -> None:
    command.run(
        argv,
        lambda: command.simulate(
            Builder,
            LiberoConfig(
                tasks=tuple(_TASKS.value),
                scene=_DOMAIN.value,
                demos=_DEMOS.value,
                episodes=_EPISODES.value,
                **_SHARED(),
            ),
        ),
    )


if __name__ == "__main__":
    app.run(main)
