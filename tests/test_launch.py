"""What the scripts say of what goes wrong."""

import logging

import pytest

from launch import common


@pytest.mark.parametrize(
    ("path", "failed", "shown"),
    [
        ("/lib/orbax/checkpoint/futures.py", True, False),
        ("/lib/orbax/checkpoint/futures.py", False, True),
        ("/lib/etcvla/train/checkpoint.py", True, True),
    ],
)
def test_a_save_that_fails_is_one_message_and_no_tracebacks(path, failed, shown):
    error = OSError("No space left on device")
    record = logging.LogRecord(
        "absl",
        logging.ERROR,
        path,
        1,
        "raised an exception",
        (),
        (OSError, error, None) if failed else None,
    )
    assert common.shown(record) is shown
