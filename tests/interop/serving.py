"""Serves a small checkpoint by `launch/serve.py`, and has another Python's openpi-client talk to it.

python -m tests.interop.serving PYTHON. Exits with 1 if a check failed, or if the server does not stop when it is told.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from etcvla.train.checkpoint import CheckpointWriter
from etcvla.train.checkpoint_meta import checkpoint_meta
from etcvla.train.stage import Stage
from etcvla.train.state import TrainState
from tests.data.handmade_rlds import write_robot_set
from tests.models.small import random_params
from tests.train.nano import nano_config

KEY = "interop"


def write_checkpoint(folder: Path) -> Stage:
    """A run of the small model with random parameters in folder/run."""
    stage = Stage.open(nano_config(write_robot_set(folder / "robot"), folder / "run"))
    checkpoints = CheckpointWriter(stage.config.workdir, keep=1)
    params = random_params(stage.model, scale=0.5)
    checkpoints.save(
        TrainState(step=np.int32(1), params={}, ema=params, opt={"count": np.zeros(1)}),
        checkpoint_meta(stage),
    )
    checkpoints.wait()
    return stage


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        spec = write_checkpoint(Path(folder)).assets.action_spec
        server = subprocess.Popen(
            [sys.executable, "launch/serve.py", f"--checkpoint={folder}/run", "--port=0"],
            text=True,
            stdout=subprocess.PIPE,
            env=os.environ | {"ETCVLA_API_KEY": KEY, "PYTHONPATH": "."},
        )
        try:
            address = next(line for line in server.stdout if line.startswith("listening"))
            sizes = [str(spec[name]) for name in ("state_dim", "horizon", "action_dim")]
            talk = subprocess.run(
                [
                    sys.argv[1],
                    Path(__file__).with_name("openpi_client_talks.py"),
                    address.rsplit(":", 1)[1].strip(),
                    KEY,
                    ",".join(spec["cameras"]),
                    *sizes,
                ]
            )
        finally:
            server.send_signal(signal.SIGINT)
            stopped = server.wait(30)
        print(f"the server stopped with code {stopped}")
        return talk.returncode or stopped


if __name__ == "__main__":
    sys.exit(main())
