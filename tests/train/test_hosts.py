"""Runs of several processes, and runs that stop on a signal: real processes and signals."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.train import hosts
from etcvla.train.checkpoint import open_checkpoint
from etcvla.train.loop import train
from etcvla.train.stage import Stage
from tests.data.handmade_rlds import write_robot_set
from tests.kill_training import STEPS, free_port
from tests.train.nano import nano_config, read_metrics, saved_state

# One of two processes, each with two devices that are not neighbours on the mesh. Process 1 gets
# SIGTERM before its step 4.
PROCESS = """
import os, signal, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
from etcvla.train import hosts
dataset, workdir, coordinator, process_id = sys.argv[1:]
hosts.connect(coordinator, 2, int(process_id))
import jax
from etcvla.train import sharding
from etcvla.train.loop import train
from etcvla.train.stage import Stage
from tests.train.test_hosts import make_config, send_signal_before
config = make_config(dataset, workdir)
make_mesh = sharding.make_mesh
sharding.make_mesh = lambda sizes: make_mesh(sizes, [jax.devices()[i] for i in (0, 2, 1, 3)])
print("rows", sharding.local_rows(config.batch_size, sharding.make_mesh(config.mesh)).tolist())
if process_id == "1":
    Stage.batches = send_signal_before(3, signal.SIGTERM)
train(config)
"""


def make_config(dataset, workdir):
    return nano_config(dataset, workdir, steps=STEPS, save_every=STEPS)


def send_signal_before(step, number):
    """Return a `Stage.batches` that sends a signal before the batch of `step`, from 0."""
    original_batches = Stage.batches

    def batches(stage, start, rows):
        for i, batch in enumerate(original_batches(stage, start, rows), start):
            if i == step:
                os.kill(os.getpid(), number)
            yield batch

    return batches


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_robot_set(tmp_path_factory.mktemp("robot"))


def start_python(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_changing_the_number_of_hosts_changes_no_result(dataset, tmp_path):
    """One process, then two (stopped by a signal), then one again: the same losses and parameters
    as one uninterrupted run, up to the order of sums over devices."""
    config = make_config(dataset, tmp_path / "run")
    uninterrupted = make_config(dataset, tmp_path / "uninterrupted")
    train(config, until=2)
    address = f"localhost:{free_port()}"
    processes = [start_python(PROCESS, dataset, config.workdir, address, i) for i in range(2)]
    train(uninterrupted)
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [hosts.PREEMPTED] * 2, outputs
    assert 3 < open_checkpoint(config.workdir).step <= STEPS
    stdout0, stdout1 = (stdout for stdout, _ in outputs)
    assert stdout0.splitlines()[0] == "rows [0, 1, 4, 5]"
    assert stdout1.splitlines()[0] == "rows [2, 3, 6, 7]"
    assert f"resumed at step 2 of {STEPS}" in stdout0
    assert "Preempted; saved at" in stdout0
    assert "objective_bridge" not in stdout1  # only host 0 logs

    train(config)
    lines = read_metrics(config.workdir)
    expected_lines = read_metrics(uninterrupted.workdir)
    assert lines.keys() == expected_lines.keys() == set(range(1, STEPS + 1))
    for step, expected in expected_lines.items():
        for name, value in expected.items():
            if "loss" in name or name == "grad_norm":
                message = f"{name} at {step}"
                np.testing.assert_allclose(lines[step][name], value, rtol=1e-5, err_msg=message)
    state = saved_state(config)
    for name, value in saved_state(uninterrupted).items():
        np.testing.assert_allclose(state[name], value, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_makes_a_run_save_and_exit(dataset, tmp_path, monkeypatch, number):
    config = make_config(dataset, tmp_path)
    old_handler = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit_info:
        patch.setattr(Stage, "batches", send_signal_before(2, number))
        train(config)
    assert exit_info.value.code == hosts.PREEMPTED == 75
    assert open_checkpoint(tmp_path).step == 3
    assert signal.getsignal(number) == old_handler
    assert train(config)["steps"] == STEPS


def test_a_second_sigint_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), hosts.StopSignals() as stop_signals:
        signal.raise_signal(signal.SIGINT)
        assert stop_signals(1)
        signal.raise_signal(signal.SIGINT)


def test_connect_without_a_cluster_makes_a_run_of_one_process():
    code = (
        "from etcvla.train import hosts; hosts.connect(); import jax; "
        "print(jax.process_count(), jax.device_count())"
    )
    process = start_python(code)
    assert process.communicate()[0] == "1 1\n"
    assert process.returncode == 0


def test_connect_with_some_flags_names_the_missing_ones():
    with pytest.raises(UserError, match="missing: --num_processes, --process_id"):
        hosts.connect("localhost:1")
