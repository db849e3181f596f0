"""Serve a small checkpoint with `launch/serve.py`, and run `openpi_client_checks.py` against it.

python -m tests.interop.serving PYTHON, a Python that has openpi-client. It exits with 1 if a check
fails, or if the server does not stop.
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
    """Save a checkpoint of the small model with random parameters to the workdir folder/run."""
    stage = Stage.open(nano_config(write_robot_set(folder / "robot"), folder / "run"))
    checkpoints = CheckpointWriter(stage.config.workdir, keep=1)
    params = random_params(stage.model, scale=0.5)
    state = TrainState(step=np.int32(1), params={}, ema=params, opt={"count": np.zeros(1)})
    checkpoints.save(state, checkpoint_meta(stage))
    checkpoints.wait()
    return stage


def main() -> int:
    """Run the server and the checks, and return the exit code."""
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
            checks = subprocess.run(
                [
                    sys.argv[1],
                    Path(__file__).with_name("openpi_client_checks.py"),
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
        return checks.returncode or stopped


if __name__ == "__main__":
    sys.exit(main())
