"""Trains one stage.

    python launch/train.py --config=configs/objective_bridge.py[:tiny|:paligemma_3b] [--config.FIELD=VALUE ...]

What an embedded run lacks (its dataset, the stage before it) is built first, with a line that says so.

The same command goes on where a run was killed or stopped. Told to stop (SIGTERM, Ctrl-C) it saves and exits with 75,
so that `until COMMAND; [ $? -ne 75 ]; do :; done` outlives preemption. On a pod, run it on every worker at once.
"""

import dataclasses

from absl import flags
from ml_collections import config_flags

from etcvla.train import hosts
from launch import common

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A stage's config file, with its variant after a colon."
)
_ALLOW = flags.DEFINE_list(
    "allow", [], "Config fields in which a run that is taken up may differ from what it was."
)
_WANDB = flags.DEFINE_string(
    "wandb", "", "Project of Weights & Biases that the run is logged to as well."
)
_PROFILE = flags.DEFINE_string(
    "profile", "", "START:STOP, steps that are traced into <workdir>/profile."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", 'host:port of process 0; "" asks the environment (TPU VMs).'
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "How many processes the run has, with --coordinator."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", -1, "Which of them this is, from 0, with --coordinator."
)


def main(_):
    hosts.connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    options = dataclasses.replace(common.SHOWN, wandb=_WANDB.value, profile=_PROFILE.value)
    common.train_with_parents(_CONFIG.value, _ALLOW.value, options)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    common.run(main)
