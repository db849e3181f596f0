"""What a run writes down, and when it stops."""

import json
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from etcvla.train.log import JSONLines, Logger, TensorBoard, WandB, format_duration
from tests.train.full_disk import files_up_to


def metrics(**values):
    return {
        name: jnp.float32(value)
        for name, value in ({"loss": 1.0, "grad_norm": 2.0} | values).items()
    }


def lines(folder, name="metrics"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


class Ticks:
    """A format_duration that goes on by what each call says."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("time.time", lambda: self.now)


def test_a_line_holds_the_means_since_the_last(tmp_path, capsys):
    with Logger(str(tmp_path), "stage", steps=5, every=2) as logger:
        for step, loss in enumerate([1.0, 3.0, 5.0, 8.0, 7.0], start=1):
            rare = {
                "a/loss": 4.0 if step == 2 else np.nan,
                "b/loss": np.nan,
                "v": np.array([step, np.nan]),
            }
            logger.step(step, metrics(loss=loss) | rare)
            assert (
                len(lines(tmp_path) if step > 1 else []) == [0, 1, 1, 2, 3][step - 1]
            )  # and the last
    written = lines(tmp_path)
    assert [(line["step"], line["loss"]) for line in written] == [(2, 2.0), (4, 6.5), (5, 7.0)]
    assert (
        written[0]["a/loss"] == 4.0 and "b/loss" not in written[0]
    )  # absent, not NaN: JSON has none
    assert [line["v_0"] for line in written] == [1.5, 3.5, 5] and "v_1" not in written[0]
    assert "a/loss" not in written[1] and written[0]["steps_per_second"] > 0
    started, first, *_ = capsys.readouterr().out.splitlines()
    assert started.startswith("stage: first step after ")
    assert first.startswith("stage 2/5 | ") and "left | loss 2.000 | data wait 0%" in first
    assert list((tmp_path / "tensorboard").iterdir())


def test_neither_compilation_nor_a_pause_counts_in_the_rate(tmp_path, monkeypatch):
    ticks, asked = Ticks(monkeypatch), []

    def facts(step, rate):
        asked.append((step, rate))
        return {"run/mfu": 0.5}

    with Logger(str(tmp_path), "stage", steps=100, every=4, facts=facts) as logger:
        for step in range(1, 9):
            ticks.now += 300 if step == 1 else 2
            logger.step(step, metrics())
            if step == 5:
                with logger.pause():
                    ticks.now += 500
    assert asked == [(4, 0.5), (8, 0.5)]
    assert all(line["run/mfu"] == 0.5 for line in lines(tmp_path))


def test_the_line_says_how_long_is_left_and_how_it_goes(tmp_path, monkeypatch, capsys):
    ticks = Ticks(monkeypatch)
    facts = {
        "run/tokens_per_second": 12345.6,
        "run/mfu": 0.4123,
        "run/device_gib": 9.96,
        "run/resident_gib": 1.23,
    }
    with Logger(str(tmp_path), "stage", steps=7222, every=11, facts=lambda *_: facts) as logger:
        batches = logger.waiting(iter(range(99)))
        for step in range(1, 12):
            next(batches)
            ticks.now += 1
            logger.step(step, metrics())
    assert capsys.readouterr().out.splitlines()[1] == (
        "stage 11/7222 | 1.00 steps/s | 2:00:11 left | loss 1.000 | data wait 0% | 12,346 tokens/s | 41.2% MFU | "
        "10.0 GiB on device | 1.2 GiB resident"
    )


@pytest.mark.parametrize(
    ("values", "what"),
    [({"loss": np.nan}, "the loss is nan"), ({"grad_norm": np.inf}, "the gradient's norm is inf")],
)
def test_what_is_not_finite_stops_the_run_at_its_step(tmp_path, values, what):
    with Logger(str(tmp_path), "stage", steps=9, every=3) as logger:
        logger.step(1, metrics())
        logger.step(2, metrics(**values))
        with pytest.raises(FloatingPointError, match=f"stage: {what} at step 2"):
            logger.step(3, metrics())
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_step_that_was_skipped_is_counted_and_left_out(tmp_path, capsys):
    with Logger(str(tmp_path), "stage", steps=4, every=2) as logger:
        for step, (loss, skipped) in enumerate(
            [(1.0, 0.0), (np.inf, 1.0), (np.nan, 1.0), (np.nan, 1.0)], start=1
        ):
            logger.step(step, metrics(loss=loss, skipped=skipped))
    first, second = lines(tmp_path)
    assert (first["loss"], first["skipped"]) == (1.0, 1.0)
    assert "loss" not in second and second["skipped"] == 2.0
    assert "1 steps skipped" in capsys.readouterr().out


def test_waiting_is_counted(tmp_path, monkeypatch):
    ticks = Ticks(monkeypatch)

    def slow():
        for item in "abc":
            ticks.now += 3
            yield item

    with Logger(str(tmp_path), "stage", steps=3, every=3) as logger:
        for step, _ in enumerate(logger.waiting(slow()), start=1):
            ticks.now += 1
            logger.step(step, metrics())
    assert lines(tmp_path)[0]["data_wait"] == 0.75  # of the steps after the first


def test_a_resumed_runs_file_reads_as_if_it_had_never_been_killed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in (2, 4, 6)) + '{"step": 8, "lo'
    )
    kept = JSONLines(path, start=4)
    kept.write(6, {"loss": 2.0})
    kept.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (2, 1.0),
        (4, 1.0),
        (6, 2.0),
    ]


def test_a_full_disk_ends_the_run_by_name_and_does_not_hang_it(tmp_path):
    told = rf"^{tmp_path}: what the run logs was not written.*make room"
    with (
        files_up_to(2000),
        pytest.raises(OSError, match=told),
        Logger(str(tmp_path), "stage", steps=500, every=1) as logger,
    ):
        for step in range(1, 500):
            logger.step(step, metrics())
    written = [
        json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[:-1]
    ]
    assert [line["step"] for line in written] == list(range(1, len(written) + 1))


def test_events_can_be_read_and_a_full_disk_is_an_error_of_theirs_too(tmp_path):
    board = TensorBoard(str(tmp_path), start=4)
    board.write(5, {"loss": 0.5, "a/accuracy": 0.25})
    board.picture(5, "drawn", np.zeros((4, 6, 3), np.uint8))
    with files_up_to(2000), pytest.raises(OSError):
        for step in range(6, 500):
            board.write(step, {"loss": 1.0})
    (file,) = tmp_path.iterdir()
    head, purge, line, drawn = list(events(file.read_bytes()))[:4]
    assert head.file_version == "brain.Event:2" and (purge.step, purge.session_log.status) == (
        5,
        SessionLog.START,
    )
    assert line.step == 5 and {v.tag: v.simple_value for v in line.summary.value} == {
        "loss": 0.5,
        "a/accuracy": 0.25,
    }
    assert (drawn.summary.value[0].image.width, drawn.summary.value[0].image.height) == (6, 4)


def events(data):
    """Of a TFRecord file: a length of eight bytes, its checksum of four, the record, a checksum of four."""
    while len(data) >= 12 and len(data) >= (size := 16 + int.from_bytes(data[:8], "little")):
        yield Event.FromString(data[12 : size - 4])
        data = data[size:]


def test_held_out_numbers_have_a_file_of_their_own(tmp_path, capsys):
    with Logger(str(tmp_path), "stage", steps=2, every=1) as logger:
        logger.step(1, metrics())
        logger.held_out(
            1,
            {
                "loss/text": 3.0,
                "etc/robot/affordance/accuracy": 0.25,
                "flow_error/dim_0": 1.0,
                "act/mt10/success": 0.5,
                "act/mt10/reach/success": 0.75,
            },
        )
    assert [line.keys() for line in lines(tmp_path, "held_out")] == [
        {
            "step",
            "time",
            "loss/text",
            "etc/robot/affordance/accuracy",
            "flow_error/dim_0",
            "act/mt10/success",
            "act/mt10/reach/success",
        }
    ]
    assert len(lines(tmp_path)) == 1
    assert (
        "stage 1/2 | held out: text 3.000, robot/affordance 25%, mt10 50%\n"
        in capsys.readouterr().out
    )


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with Logger(str(tmp_path), "stage", steps=2, every=1) as logger:
        logger.step(1, metrics())
        logger.picture(1, "first_batch", np.zeros((2, 2, 3), np.uint8))
        with pytest.raises(FloatingPointError):  # but every one stops
            logger.step(2, metrics(loss=np.nan))
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


class FakeWandB:
    """Stands in for the package; runs by id, as its server keeps them."""

    def __init__(self):
        self.runs, self.opened = {}, []
        self.module = SimpleNamespace(init=self.init, Image=lambda image: ("image", image.shape))

    def init(self, *, project, name, dir, config, id, resume):
        self.opened.append((project, name, config, id, resume))
        logged = self.runs.setdefault(id, [])
        return SimpleNamespace(
            log=lambda numbers, step: logged.append((step, numbers)),
            finish=lambda: logged.append("finished"),
        )


def test_wandb_gets_everything_and_takes_a_run_up_again(tmp_path, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake.module)
    for start in (0, 2):
        sink = WandB("project", "stage:tiny", str(tmp_path / "run"), {"seed": 1})
        with Logger(
            str(tmp_path / "run"), "stage", steps=4, every=2, start=start, more=[sink]
        ) as logger:
            logger.picture(start + 1, "first_batch", np.zeros((4, 5, 3), np.uint8))
            for step in (start + 1, start + 2):
                logger.step(step, metrics(loss=step))
            logger.held_out(start + 2, {"loss/text": 3.0})
    (opened, again), (logged,) = fake.opened, fake.runs.values()
    assert (
        opened == again
        and opened[:3] == ("project", "stage:tiny", {"seed": 1})
        and opened[4] == "allow"
    )
    assert logged[0] == (1, {"first_batch": ("image", (4, 5, 3))}) and logged.count("finished") == 2
    assert [(entry[0], entry[1]["loss"]) for entry in logged if "loss" in entry[1]] == [
        (2, 1.5),
        (4, 3.5),
    ]
    assert (2, {"held_out/loss/text": 3.0}) in logged


def test_wandb_that_is_not_installed_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install etcvla\[wandb\]"):
        WandB("project", "stage", str(tmp_path), {})


def test_clock():
    assert [format_duration(s) for s in (0.9, 61, 3600 * 11 + 62)] == ["0:00", "1:01", "11:01:02"]
