"""How scripts end: a user's error in one line, a bug with its traceback."""

import logging
import subprocess
import sys

import pytest

from etcvla.errors import UserError
from launch import common


@pytest.fixture
def run_script(monkeypatch):
    """Call `common.run` on a `main` that raises, without absl."""

    def _run(error):
        def _main(_):
            raise error

        common.run(_main)

    monkeypatch.setattr(common, "setup", lambda: None)
    monkeypatch.setattr(common.app, "run", lambda main, flags_parser: main([]))
    return _run


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            UserError("optim.clip is -1, expected 0 or more"),
            "error: optim.clip is -1, expected 0 or more",
            "",
        ),
    ],
)
def test_user_errors_end_without_a_traceback(run_script, capsys, error, code, stderr):
    with pytest.raises(SystemExit) as exit_info:
        run_script(error)
    assert (exit_info.value.code, capsys.readouterr().err) == (code, stderr)


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug")])
def test_bugs_keep_their_traceback(run_script, error):
    with pytest.raises(type(error), match="a bug"):
        run_script(error)


@pytest.mark.parametrize(
    ("path", "has_traceback", "shown"),
    [
        ("/lib/orbax/checkpoint/futures.py", True, False),
        ("/lib/orbax/checkpoint/futures.py", False, True),
        ("/lib/etcvla/train/checkpoint.py", True, True),
    ],
)
def test_tracebacks_of_orbax_threads_are_not_logged(path, has_traceback, shown):
    exc_info = (OSError, OSError("No space left on device"), None) if has_traceback else None
    record = logging.LogRecord("absl", logging.ERROR, path, 1, "raised", (), exc_info)
    assert common.is_shown(record) is shown


_COUNT_FAULTS = """
import resource
import numpy as np
from launch import common

def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(2**21)  # 16 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults = count_faults()
common.keep_freed_memory()
count_faults()
print(faults, count_faults())
"""


def test_freed_memory_is_not_faulted_in_again():
    command = [sys.executable, "-c", _COUNT_FAULTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    default, kept = map(int, done.stdout.split())
    assert kept < default / 10
