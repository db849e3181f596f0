"""Errors that a user can fix."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: a config field, a flag, a file or an environment that the user has to change.

    The message is one line that names the field or file, the value, and the fix. Scripts print it
    without a traceback; every other exception is a bug and shows its traceback.
    """
