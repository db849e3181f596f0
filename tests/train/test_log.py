"""The progress lines, metrics.jsonl, TensorBoard and Weights & Biases of a run."""

import json
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from etcvla.errors import UserError
from etcvla.train.log import MetricsLogger, format_duration
from etcvla.train.sinks import JSONLines, TensorBoard, WandB
from tests.train.full_disk import limit_file_size


def make_logger(folder, *, steps, log_every, **options):
    config = SimpleNamespace(workdir=str(folder), stage="stage", steps=steps, log_every=log_every)
    return MetricsLogger(config, **options)


def make_metrics(**values):
    values = {"loss": 1.0, "grad_norm": 2.0} | values
    return {name: jnp.float32(value) for name, value in values.items()}


def read_lines(folder, name="metrics"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


class FakeClock:
    """Replaces time.time; tests advance `now`."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("time.time", lambda: self.now)


def test_a_line_has_the_means_since_the_last_line(tmp_path, capsys):
    lines_after_step = []
    with make_logger(tmp_path, steps=5, log_every=2) as logger:
        for step, loss in enumerate([1.0, 3.0, 5.0, 8.0, 7.0], start=1):
            rare = {
                "a/loss": 4.0 if step == 2 else np.nan,
                "b/loss": np.nan,
                "v": np.array([step, np.nan]),
            }
            logger.step(step, make_metrics(loss=loss) | rare)
            lines_after_step.append(len(read_lines(tmp_path)) if step > 1 else 0)
    assert lines_after_step == [0, 1, 1, 2, 3]  # every second step, and the last step
    lines = read_lines(tmp_path)
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 2.0), (4, 6.5), (5, 7.0)]
    assert lines[0]["a/loss"] == 4.0
    assert "a/loss" not in lines[1] and "b/loss" not in lines[0]  # JSON has no NaN
    assert [line["v_0"] for line in lines] == [1.5, 3.5, 5]
    assert "v_1" not in lines[0]
    assert lines[0]["steps_per_second"] > 0
    started, first, *_ = capsys.readouterr().out.splitlines()
    assert started.startswith("stage: first step after ")
    assert first.startswith("stage 2/5 | ")
    assert "left | loss 2.000 | data wait 0%" in first
    assert list((tmp_path / "tensorboard").iterdir())


def test_compilation_and_pauses_do_not_count_in_the_rate(tmp_path, monkeypatch):
    clock = FakeClock(monkeypatch)
    calls = []

    def extra_numbers(step, rate):
        calls.append((step, rate))
        return {"run/mfu": 0.5}

    with make_logger(tmp_path, steps=100, log_every=4, extra_numbers=extra_numbers) as logger:
        for step in range(1, 9):
            clock.now += 300 if step == 1 else 2
            logger.step(step, make_metrics())
            if step == 5:
                with logger.timer.pause():
                    clock.now += 500
    assert calls == [(4, 0.5), (8, 0.5)]
    assert all(line["run/mfu"] == 0.5 for line in read_lines(tmp_path))


def test_the_progress_line_shows_time_left_and_usage(tmp_path, monkeypatch, capsys):
    clock = FakeClock(monkeypatch)
    numbers = {
        "run/tokens_per_second": 12345.6,
        "run/mfu": 0.4123,
        "run/device_gib": 9.96,
        "run/resident_gib": 1.23,
    }
    options = {"extra_numbers": lambda step, rate: numbers}
    with make_logger(tmp_path, steps=7222, log_every=11, **options) as logger:
        batches = logger.timer.time_waits(iter(range(99)))
        for step in range(1, 12):
            next(batches)
            clock.now += 1
            logger.step(step, make_metrics())
    assert capsys.readouterr().out.splitlines()[1] == (
        "stage 11/7222 | 1.00 steps/s | 2:00:11 left | loss 1.000 | data wait 0% | "
        "12,346 tokens/s | 41.2% MFU | 10.0 GiB on device | 1.2 GiB resident"
    )


@pytest.mark.parametrize(
    ("values", "problem"),
    [({"loss": np.nan}, "the loss is nan"), ({"grad_norm": np.inf}, "the gradient norm is inf")],
)
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, values, problem):
    with make_logger(tmp_path, steps=9, log_every=3) as logger:
        logger.step(1, make_metrics())
        logger.step(2, make_metrics(**values))
        with pytest.raises(UserError, match=f"stage: {problem} at step 2"):
            logger.step(3, make_metrics())
    assert not (tmp_path / "metrics.jsonl").exists()


def test_skipped_steps_are_counted_and_left_out_of_the_means(tmp_path, capsys):
    steps = [(1.0, 0.0), (np.inf, 1.0), (np.nan, 1.0), (np.nan, 1.0)]
    with make_logger(tmp_path, steps=4, log_every=2) as logger:
        for step, (loss, skipped) in enumerate(steps, start=1):
            logger.step(step, make_metrics(loss=loss, skipped=skipped))
    first, second = read_lines(tmp_path)
    assert (first["loss"], first["skipped"]) == (1.0, 1.0)
    assert "loss" not in second and second["skipped"] == 2.0
    assert "1 steps skipped" in capsys.readouterr().out


def test_waiting_for_data_is_logged(tmp_path, monkeypatch):
    clock = FakeClock(monkeypatch)

    def slow_batches():
        for item in "abc":
            clock.now += 3
            yield item

    with make_logger(tmp_path, steps=3, log_every=3) as logger:
        for step, _ in enumerate(logger.timer.time_waits(slow_batches()), start=1):
            clock.now += 1
            logger.step(step, make_metrics())
    assert read_lines(tmp_path)[0]["data_wait"] == 0.75  # of the steps after the first


def test_resuming_removes_later_and_incomplete_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    old = [f'{{"step": {step}, "loss": 1.0}}\n' for step in (2, 4, 6)]
    path.write_text("".join(old) + '{"step": 8, "lo')
    file = JSONLines(path, start=4)
    file.write(6, {"loss": 2.0})
    file.close()
    lines = [(line["step"], line["loss"]) for line in read_lines(tmp_path)]
    assert lines == [(2, 1.0), (4, 1.0), (6, 2.0)]


def test_a_full_disk_stops_the_run_with_the_workdir_named(tmp_path):
    message = rf"^{tmp_path}: cannot write the run's logs.*make room"
    with (
        limit_file_size(2000),
        pytest.raises(UserError, match=message),
        make_logger(tmp_path, steps=500, log_every=1) as logger,
    ):
        for step in range(1, 500):
            logger.step(step, make_metrics())
    complete_lines = (tmp_path / "metrics.jsonl").read_text().splitlines()[:-1]
    steps = [json.loads(line)["step"] for line in complete_lines]
    assert steps == list(range(1, len(steps) + 1))


def test_tensorboard_events_are_readable_and_a_full_disk_raises(tmp_path):
    board = TensorBoard(str(tmp_path), start=4)
    board.write(5, {"loss": 0.5, "a/accuracy": 0.25})
    board.write_image(5, "image", np.zeros((4, 6, 3), np.uint8))
    with limit_file_size(2000), pytest.raises(OSError):
        for step in range(6, 500):
            board.write(step, {"loss": 1.0})
    (file,) = tmp_path.iterdir()
    version, start, line, image = list(read_events(file.read_bytes()))[:4]
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, SessionLog.START)
    assert line.step == 5
    scalars = {value.tag: value.simple_value for value in line.summary.value}
    assert scalars == {"loss": 0.5, "a/accuracy": 0.25}
    assert (image.summary.value[0].image.width, image.summary.value[0].image.height) == (6, 4)


def read_events(data):
    """Yield the complete events of a TFRecord file.

    A record is its length (8 bytes), the length's checksum (4), the event and its checksum (4).
    """
    while len(data) >= 12:
        size = 16 + int.from_bytes(data[:8], "little")
        if len(data) < size:
            return
        yield Event.FromString(data[12 : size - 4])
        data = data[size:]


def test_held_out_results_are_written_to_their_own_file(tmp_path, capsys):
    results = {
        "loss/text": 3.0,
        "etc/robot/affordance/accuracy": 0.25,
        "flow_error/dim_0": 1.0,
        "act/mt10/success": 0.5,
        "act/mt10/reach/success": 0.75,
    }
    with make_logger(tmp_path, steps=2, log_every=1) as logger:
        logger.step(1, make_metrics())
        logger.log_held_out(1, results)
    (line,) = read_lines(tmp_path, "held_out")
    assert line.keys() == {"step", "time", *results}
    assert len(read_lines(tmp_path)) == 1
    expected = "stage 1/2 | held out: text 3.000, robot/affordance 25%, mt10 50%\n"
    assert expected in capsys.readouterr().out


def test_only_host_0_writes_and_every_host_stops(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with make_logger(tmp_path, steps=2, log_every=1) as logger:
        logger.step(1, make_metrics())
        logger.log_image(1, "first_batch", np.zeros((2, 2, 3), np.uint8))
        with pytest.raises(UserError):
            logger.step(2, make_metrics(loss=np.nan))
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out


class FakeWandB:
    """Replaces the package wandb. Stores what is logged by run id, as the server does."""

    def __init__(self):
        self.runs = {}
        self.init_calls = []
        self.module = SimpleNamespace(init=self.init, Image=lambda image: ("image", image.shape))

    def init(self, *, project, name, dir, config, id, resume):
        self.init_calls.append((project, name, config, id, resume))
        logged = self.runs.setdefault(id, [])
        return SimpleNamespace(
            log=lambda numbers, step: logged.append((step, numbers)),
            finish=lambda: logged.append("finished"),
        )


def test_wandb_logs_everything_and_continues_the_run_on_resume(tmp_path, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake.module)
    workdir = tmp_path / "run"
    for start in (0, 2):
        sink = WandB("project", "stage:tiny", str(workdir), {"seed": 1})
        with make_logger(workdir, steps=4, log_every=2, start=start, sinks=[sink]) as logger:
            logger.log_image(start + 1, "first_batch", np.zeros((4, 5, 3), np.uint8))
            for step in (start + 1, start + 2):
                logger.step(step, make_metrics(loss=step))
            logger.log_held_out(start + 2, {"loss/text": 3.0})
    first, resumed = fake.init_calls
    assert first == resumed
    assert first[:3] == ("project", "stage:tiny", {"seed": 1}) and first[4] == "allow"
    (logged,) = fake.runs.values()
    assert logged[0] == (1, {"first_batch": ("image", (4, 5, 3))})
    assert logged.count("finished") == 2
    losses = [(entry[0], entry[1]["loss"]) for entry in logged if "loss" in entry[1]]
    assert losses == [(2, 1.5), (4, 3.5)]
    assert (2, {"held_out/loss/text": 3.0}) in logged


def test_missing_wandb_is_an_error_that_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install etcvla\[wandb\]"):
        WandB("project", "stage", str(tmp_path), {})


def test_durations_are_formatted_as_hours_minutes_seconds():
    durations = [format_duration(seconds) for seconds in (0.9, 61, 3600 * 11 + 62)]
    assert durations == ["0:00", "1:01", "11:01:02"]
