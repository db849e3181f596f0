"""Errors of rendering without a display start with the command that fixes them."""

import ctypes
import subprocess
import sys

import pytest

from etcvla.errors import UserError
from etcvla.sims import headless


def test_rendering_works_on_this_machine():
    headless.check_rendering()


@pytest.mark.parametrize("check", [headless.require_egl, headless.check_rendering])
def test_missing_library_raises_the_install_command(monkeypatch, check):
    def _missing(name, *args, **kwargs):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(ctypes, "CDLL", _missing)
    with pytest.raises(UserError, match="libEGL.so.1: cannot open") as raised:
        check()
    assert str(raised.value).startswith("sudo apt-get install -y libegl1 libgl1\n")


def test_crash_of_the_renderer_is_reported(monkeypatch):
    monkeypatch.setattr(headless, "_RENDER_SCRIPT", "import os; os.abort()")
    with pytest.raises(UserError, match="exit code -6") as raised:
        headless.check_rendering()
    assert str(raised.value).startswith(headless.FIX)


@pytest.mark.parametrize(
    "imports",
    [
        "import tensorflow; from etcvla.sims.render import Renderer",
        "import etcvla.sims.conditions",
        "import etcvla.sims.oracle",
    ],
)
def test_rendering_works_after_other_imports(imports):
    code = f"{imports}; import mujoco; " + headless._RENDER_SCRIPT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
