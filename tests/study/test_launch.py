"""The command launch/study.py, with runs that are replaced by a stand-in."""

import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from etcvla.errors import UserError
from etcvla.study import collect, costs, runs
from launch import study as launcher
from tests.study.made_study import FakeTrainer, load_stage, run, study_config


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Call the command with flags; runs are done by a stand-in."""
    config = study_config(tmp_path / "work")
    config.matched = "flops"
    config.runs.plain = run(changes=(("steps", 4),))  # as many as the two runs of "bridged" have
    trainer = FakeTrainer(tmp_path / "log")
    monkeypatch.setattr(launcher.common, "load_stage", load_stage)
    monkeypatch.setattr(launcher.execute, "execute", lambda run, study, train: trainer(run))
    monkeypatch.setattr(launcher.execute, "build_missing", lambda datasets, folder: None)
    monkeypatch.setattr(costs, "_step_flops", lambda config: 1)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])

    def _call(**values):
        monkeypatch.setattr(launcher, "_CONFIG", type("Flag", (), {"value": config}))
        with flagsaver.flagsaver(**values):
            launcher.main([])

    return config, trainer, _call


def test_work_list_and_dry(command, capsys):
    config, trainer, call = command
    call(list=True)
    assert "8 of 8 runs left" in capsys.readouterr().out
    call(dry=True)
    assert "action rows" in capsys.readouterr().out
    call(cells=["bridged"], seeds=["1"])
    assert trainer.done() == [("first", 1), ("bridged", 1)]
    assert (runs.pathlib.Path(config.workdir) / "protocol.json").exists()
    assert len(collect.read_study(config.workdir)["cells"]) == 6
    call()
    assert len(trainer.done()) == 8
    assert "all runs are done" in capsys.readouterr().out


def test_failed_runs_end_the_command_with_one_line(command):
    _, trainer, call = command
    trainer.fail["slow"] = 100
    with pytest.raises(UserError, match="2 runs failed 3 times; delete the folder `attempts`"):
        call()
    assert trainer.done().count(("plain", 1)) == 1


def test_arms_that_do_not_match_are_not_run(command):
    config, trainer, call = command
    config.runs.plain = run()
    for values in ({"dry": True}, {}):
        with pytest.raises(UserError, match="multiply the steps of plain by 2.000"):
            call(**values)
    assert not trainer.log.exists()


def test_wrong_flags_and_folders_are_named(command):
    config, _, call = command
    with pytest.raises(UserError, match="--seeds=one: expected numbers"):
        call(seeds=["one"])
    call(cells=["plain"])
    config.name = "other"
    with pytest.raises(UserError, match="belongs to the study 'small'"):
        call()
