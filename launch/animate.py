"""Write an animation of a policy that acts, with its predicted path and its box of the target.

python launch/animate.py --checkpoint=runs/metaworld/objective_bridge --out=docs/policy.gif
"""

from absl import flags

from etcvla.pages.animation import record_episode, write_animation
from etcvla.policy import Policy
from etcvla.sims.seeds import eval_seed
from launch import common

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Workdir (its newest checkpoint) or checkpoint that acts.", required=True
)
_OUT = flags.DEFINE_string("out", "policy.gif", "GIF to write.")
_TASKS = flags.DEFINE_list(
    "tasks", ["drawer-open", "door-open", "button-press-topdown", "window-close"], "Tasks."
)
_SCENE = flags.DEFINE_string("scene", "source", "Scene of the tasks.")
_SEED = flags.DEFINE_integer("seed", 0, "Number of the held-out layout.")


def main(_: list[str]) -> None:
    """Record one episode per task and write them side by side."""
    common.check_out_file(_OUT.value)
    policy = Policy.load(_CHECKPOINT.value)
    episodes = []
    for task in _TASKS.value:
        print(f"{task} ...", flush=True)
        episodes.append(record_episode(policy, task, _SCENE.value, eval_seed(_SEED.value)))
    write_animation(_OUT.value, episodes)
    print(_OUT.value)


if __name__ == "__main__":
    common.run(main)
