"""Builds Meta-World demonstrations: `python -m data_builders.metaworld_etc --scene=source --out=DIR [--gallery=FILE]`.

What `tfds build` does, with choices. The dataset goes to <out>/metaworld_etc/<name>/<version>.
"""

from absl import app, flags

from data_builders.common import command
from data_builders.metaworld_etc.metaworld_etc_dataset_builder import (
    TASK_SETS,
    Builder,
    MetaWorldConfig,
)
from etcvla.sims.conditions import CONDITIONS, HELD_OUT, TRAIN


def _side(side: str) -> str:
    return ", ".join(name for name, condition in CONDITIONS.items() if condition.side == side)


_DOMAIN = flags.DEFINE_string("scene", "source", "The look of the scene: source or target.")
_TASKS = flags.DEFINE_list("tasks", ["demo"], f"Task names, or one of {', '.join(TASK_SETS)}.")
_EPISODES = flags.DEFINE_integer(
    "episodes", 0, "Training episodes a task; 0: 30 in the source, 10 in the target."
)
_CONDITION = flags.DEFINE_list(
    "condition",
    [],
    "Looks to render the recorded states again in: an OOD ETC dataset, "
    f"without actions. For training: {_side(TRAIN)}; held out: {_side(HELD_OUT)}.",
)
_SHARED = command.simulator_flags(image_size=96, noise=("0.1", "0.3"))


def main(argv: list[str]) -> None:
    command.run(
        argv,
        lambda: command.simulate(
            Builder,
            MetaWorldConfig(
                scene=_DOMAIN.value,
                tasks=tuple(task for name in _TASKS.value for task in TASK_SETS.get(name, (name,))),
                episodes=_EPISODES.value,
                conditions=tuple(_CONDITION.value),
                **_SHARED(),
            ),
        ),
    )


if __name__ == "__main__":
    app.run(main)
