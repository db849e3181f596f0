"""Runs of several processes, and runs that are told to stop: real processes, real signals."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from etcvla.rules import path_str
from etcvla.train import hosts, sharding
from etcvla.train.checkpoint import open_checkpoint
from etcvla.train.loop import abstract_state, train
from etcvla.train.stage import Stage
from tests.data.handmade_rlds import write_robot_set
from tests.kill_training import STEPS, free_port
from tests.train.nano import nano_config

# One of two processes, with two devices each that do not lie side by side on the mesh; the second is told to stop.
PROCESS = """
import os, signal, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
from etcvla.train import hosts
dataset, workdir, coordinator, number = sys.argv[1:]
hosts.connect(coordinator, 2, int(number))
import jax
from etcvla.train import sharding
from etcvla.train.loop import train
from etcvla.train.stage import Stage
from tests.train.test_hosts import config_of
config, make_mesh = config_of(dataset, workdir), sharding.make_mesh
sharding.make_mesh = lambda sizes: make_mesh(sizes, [jax.devices()[i] for i in (0, 2, 1, 3)])
print("rows", sharding.local_rows(config.batch_size, sharding.make_mesh(config.mesh)).tolist())
batches = Stage.batches
def told(stage, start, rows):
    for step, batch in enumerate(batches(stage, start, rows), start):
        if step == 3 and number == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch
Stage.batches = told
train(config)
"""


def config_of(dataset, workdir, **fields):
    return nano_config(dataset, workdir, steps=STEPS, save_every=STEPS, **fields)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_robot_set(tmp_path_factory.mktemp("robot"))


def start(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def lines(workdir):
    with open(workdir / "metrics.jsonl") as file:
        return {line["step"]: line for line in map(json.loads, file)}


def saved(config):
    _, abstract = abstract_state(Stage.open(config), sharding.make_mesh(config.mesh))
    found = open_checkpoint(config.workdir).train_state(abstract)
    return {
        path_str(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]
    }


def test_hosts_come_and_go(dataset, tmp_path):
    """One process, then two of which one is told to stop, then one again: the losses of a run that was let be, and its
    parameters but for the order of sums over devices."""
    config, alone = config_of(dataset, tmp_path / "run"), config_of(dataset, tmp_path / "alone")
    train(config, until=2)
    address = f"localhost:{free_port()}"
    processes = [start(PROCESS, dataset, config.workdir, address, i) for i in range(2)]
    train(alone)
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [hosts.PREEMPTED] * 2, told
    stopped = open_checkpoint(config.workdir).step
    assert 3 < stopped <= STEPS
    assert [out.splitlines()[0] for out, _ in told] == ["rows [0, 1, 4, 5]", "rows [2, 3, 6, 7]"]
    assert f"resumed at step 2 of {STEPS}" in told[0][0] and "Preempted; saved at" in told[0][0]
    assert "objective_bridge" not in told[1][0]  # one process speaks for all
    train(config)
    found, expected = lines(tmp_path / "run"), lines(tmp_path / "alone")
    assert found.keys() == expected.keys() == set(range(1, STEPS + 1))
    for step, line in expected.items():
        for name, value in line.items():
            if "loss" in name or name == "grad_norm":
                np.testing.assert_allclose(
                    found[step][name], value, rtol=1e-5, err_msg=f"{name} at {step}"
                )
    ended = saved(config)
    for name, value in saved(alone).items():
        np.testing.assert_allclose(ended[name], value, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_and_says_so(dataset, tmp_path, monkeypatch, number):
    batches = Stage.batches

    def told(stage, start, rows):
        for step, batch in enumerate(batches(stage, start, rows), start):
            if step == 2:
                os.kill(os.getpid(), number)
            yield batch

    config, before = config_of(dataset, tmp_path), signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(Stage, "batches", told)
        train(config)
    assert stopped.value.code == hosts.PREEMPTED == 75
    assert open_checkpoint(tmp_path).step == 3 and signal.getsignal(number) == before
    assert train(config)["steps"] == STEPS


def test_a_second_interrupt_interrupts():
    with pytest.raises(KeyboardInterrupt), hosts.StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop(1)
        signal.raise_signal(signal.SIGINT)


def test_a_process_without_others_is_a_run_of_its_own():
    """Where nothing is said and the environment knows of no cluster; half of what is needed is an error."""
    code = "from etcvla.train import hosts; hosts.connect(); import jax; print(jax.process_count(), jax.device_count())"
    process = start(code)
    assert process.communicate()[0] == "1 1\n" and not process.returncode
    with pytest.raises(ValueError, match="missing: --num_processes, --process_id"):
        hosts.connect("localhost:1")
