"""Workers that share a folder: claims, retries, kills, takeovers."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from etcvla.errors import UserError
from etcvla.study import claims, worker
from etcvla.study.claims import Timing
from tests.study.made_study import FakeTrainer, small_graph

FAST = Timing(heartbeat=0.05, stale=0.5)
STALE = Timing(heartbeat=1000.0, stale=0.0)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.study.made_study"])


def start(function, *arguments):
    """Call a function in a process of its own."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def do_all_runs(workdir, seconds):
    """Work on the study."""
    trainer = FakeTrainer(workdir / "log", seconds=seconds)
    worker.work(small_graph(workdir), trainer, timing=FAST, poll_seconds=0.05)


def hold(folder):
    """Claim a piece of work and never end it."""
    with claims.claim(folder, FAST):
        time.sleep(60)


def wait_for(condition):
    """Wait until a condition holds."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition never holds")


def test_a_worker_does_all_runs_after_their_parents(tmp_path):
    graph = small_graph(tmp_path)
    trainer = FakeTrainer(tmp_path / "log")
    states = worker.work(graph, trainer)
    assert set(states.values()) == {"done"}
    assert trainer.done() == [(run.spec.name, run.seed) for run in graph.runs.values()]
    result = graph.cells["bridged", 1][1].result()
    assert (result["name"], result["seed"], result["steps"]) == ("bridged", 1, 2)
    assert result["parent"] == graph.cells["bridged", 1][0].key
    assert result["seconds"] == 4.0
    worker.work(graph, trainer)
    assert len(trainer.done()) == 8  # nothing was repeated


def test_a_failed_run_is_tried_three_times_and_stops_only_its_children(tmp_path, capsys):
    graph = small_graph(tmp_path)
    trainer = FakeTrainer(tmp_path / "log", fail={"first": 100})
    states = worker.work(graph, trainer)
    by_name = {}
    for key, run in graph.runs.items():
        by_name.setdefault(run.spec.name, set()).add(states[key])
    assert by_name == {
        "plain": {"done"},
        "first": {"failed"},
        "bridged": {"blocked"},
        "slow": {"blocked"},
    }
    assert trainer.done().count(("first", 0)) == 1 + claims.RETRIES
    folder = graph.cells["bridged", 0][0].folder
    assert "RuntimeError: first has failed" in (folder / "attempts/0002.log").read_text()
    assert f"{folder} failed: first has failed" in capsys.readouterr().out


def test_a_run_that_fails_once_is_done_in_the_end(tmp_path):
    graph = small_graph(tmp_path)
    trainer = FakeTrainer(tmp_path / "log", fail={"plain": 2})
    assert set(worker.work(graph, trainer).values()) == {"done"}
    assert trainer.done().count(("plain", 0)) == 3


def test_workers_at_the_same_time_share_the_runs(tmp_path):
    processes = [start(do_all_runs, tmp_path, 0.1) for _ in range(3)]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    done = FakeTrainer(tmp_path / "log").done()
    assert len(done) == len(set(done)) == 8
    assert done.index(("first", 0)) < done.index(("bridged", 0))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_run_of_a_killed_worker_is_taken_over(tmp_path, number):
    process = start(do_all_runs, tmp_path, 60)
    wait_for((tmp_path / "log").exists)
    os.kill(process.pid, number)
    process.join(10)
    graph = small_graph(tmp_path)
    trainer = FakeTrainer(tmp_path / "log")
    assert set(worker.work(graph, trainer).values()) == {"done"}
    done = trainer.done()
    assert done.count(("plain", 0)) == 2 and len(done) == 9
    (plain,) = graph.cells["plain", 0]
    states = [attempt.state for attempt in claims.attempts(plain.folder)]
    assert states == ["running", "done"]  # the first one left its file behind


def test_a_live_worker_keeps_its_run(tmp_path):
    with claims.claim(tmp_path, FAST):
        time.sleep(2 * FAST.stale)  # kept alive by its heartbeat
        assert claims.state(tmp_path, FAST) == "running"
        assert claims.claim(tmp_path, FAST) is None
    assert claims.state(tmp_path, FAST) == "waiting"


def test_a_worker_of_another_machine_is_dead_without_heartbeat(tmp_path):
    claim = claims.claim(tmp_path, FAST)
    assert claim is not None
    (path,) = (tmp_path / "attempts").glob("*.json")
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "host": "elsewhere"}))
    assert claims.state(tmp_path, FAST) == "running"
    long_ago = time.time() - 1
    os.utime(path, (long_ago, long_ago))
    assert claims.state(tmp_path, FAST) == "waiting"
    assert claims.claim(tmp_path, FAST) is not None
    assert len(claims.attempts(tmp_path)) == 2


def test_only_one_of_two_workers_takes_over(tmp_path, monkeypatch):
    claims.claim(tmp_path, FAST)
    monkeypatch.setattr(claims, "state", lambda folder, timing: "waiting")
    stale = claims.attempts(tmp_path)
    monkeypatch.setattr(claims, "attempts", lambda folder: stale)  # both see the same moment
    first = claims.claim(tmp_path, STALE)
    second = claims.claim(tmp_path, STALE)
    assert first is not None and second is None


def test_a_suspended_worker_ends_when_its_run_has_been_taken_over(tmp_path):
    process = start(hold, tmp_path)
    wait_for(lambda: claims.attempts(tmp_path))
    (tmp_path / "attempts/0001.json").write_text("{}")
    process.join(10)
    assert process.exitcode == 1


def test_a_stopped_worker_does_not_count_as_a_failure(tmp_path):
    for _ in range(5):
        with pytest.raises(SystemExit), claims.claim(tmp_path, FAST):
            raise SystemExit(75)
    assert {attempt.state for attempt in claims.attempts(tmp_path)} == {"stopped"}
    assert claims.state(tmp_path) == "waiting"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/attempts/0000.json cannot be created"):
        claims.claim(tmp_path / "file")
