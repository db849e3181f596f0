"""Build Meta-World demonstrations in <out>/metaworld_etc/<name>/<version>.

    python -m data_builders.metaworld_etc --scene=source --out=DIR [--gallery=FILE.html]

`tfds build data_builders/metaworld_etc` builds the default datasets too.
"""

from pathlib import Path

from absl import app, flags

from data_builders.common import command
from data_builders.metaworld_etc.task_sets import TASK_SETS
from etcvla.sims.conditions import CONDITIONS, HELD_OUT, TRAIN


def _conditions_of(side: str) -> str:
    names = [name for name, condition in CONDITIONS.items() if condition.side == side]
    return ", ".join(names)


_SCENE = flags.DEFINE_string("scene", "source", "Scene variant: source or target.")
_TASKS = flags.DEFINE_list(
    "tasks", ["demo"], f"Names of tasks and of task sets ({', '.join(TASK_SETS)})."
)
_EPISODES = flags.DEFINE_integer(
    "episodes", 0, "Training episodes per task; 0: 30 for the source scene, 10 for the target."
)
_CONDITIONS = flags.DEFINE_list(
    "conditions",
    [],
    "Appearances in which the recorded states are rendered again. The dataset has no actions then. "
    f"For training: {_conditions_of(TRAIN)}; held out: {_conditions_of(HELD_OUT)}.",
)
command.define_simulator_flags(image_size=96, noise=("0.1", "0.3"))
flags.adopt_module_key_flags(command)


def main(argv: list[str]) -> None:
    """Run the command."""
    command.run_builder(argv, _build)


def _build() -> Path:
    from data_builders.metaworld_etc.metaworld_etc_dataset_builder import Builder, MetaWorldConfig

    tasks = []
    for name in _TASKS.value:
        tasks += TASK_SETS.get(name, (name,))
    config = MetaWorldConfig(
        scene=_SCENE.value,
        tasks=tuple(tasks),
        episodes=_EPISODES.value,
        conditions=tuple(_CONDITIONS.value),
        **command.simulator_settings(),
    )
    return command.build_simulated(Builder, config)


if __name__ == "__main__":
    app.run(main)
