"""Train one stage.

    python launch/train.py --config=configs/objective_bridge.py[:VARIANT] [--config.FIELD=VALUE ...]

A missing embedded dataset or parent stage is built first; a line says so.

Rerun the same command to resume a killed or stopped run. On SIGTERM or Ctrl-C the run saves and
exits with code 75, so `until COMMAND; [ $? -ne 75 ]; do :; done` survives preemption. On a pod, run
the command on all workers at once.
"""

import dataclasses

from absl import flags
from ml_collections import config_flags

from etcvla.train import hosts
from launch import common

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of a stage, with a variant after a colon."
)
_ALLOW = flags.DEFINE_list(
    "allow", [], "Config fields that may differ from those of the run that is resumed."
)
_WANDB = flags.DEFINE_string("wandb", "", "Weights & Biases project to log to as well.")
_PROFILE = flags.DEFINE_string(
    "profile", "", "START:STOP, the steps to trace into <workdir>/profile."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", 'host:port of process 0. "": found in the environment (TPU VMs, SLURM).'
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "Number of processes, with --coordinator."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", -1, "Index of this process from 0, with --coordinator."
)


def main(_: list[str]) -> None:
    """Connect the hosts and train."""
    hosts.connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    options = dataclasses.replace(
        common.MONITOR_OPTIONS, wandb=_WANDB.value, profile=_PROFILE.value
    )
    common.train_with_parents(_CONFIG.value, _ALLOW.value, options)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    common.run(main)
