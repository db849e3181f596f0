"""Headless rendering: the environment variables MuJoCo needs before it is imported, and a check with a fix."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import subprocess
import sys

from etcvla.errors import UserError

FIX = "sudo apt-get install -y libegl1 libgl1"
_DRAW = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='.1'/></worldbody></mujoco>")
with mujoco.Renderer(model, 8, 8) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
"""

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")
# One software-rendering thread a process is faster than several, at these image sizes.
os.environ.setdefault("LP_NUM_THREADS", "1")


def require_egl() -> None:
    """Raises UserError, with the command that mends it, if the EGL or GL library is missing (cheap; no rendering).

    Without them `import mujoco` itself fails, and its message names no cause.
    """
    if os.environ.get("MUJOCO_GL") != "egl":
        return
    for library in ("libEGL.so.1", "libGL.so.1"):
        try:
            ctypes.CDLL(library)
        except OSError as error:
            raise UserError(
                f"{FIX}\n(the simulator renders without a display through EGL: {error})"
            ) from error
    _bind_mesa_to_its_llvm()


def _bind_mesa_to_its_llvm() -> None:
    """Loads Mesa's software renderer so that it finds its own LLVM first.

    TensorFlow makes the symbols of its LLVM global; a renderer that is loaded the ordinary way takes those and crashes
    the process. Where Mesa lies elsewhere or is not used, nothing happens.
    """
    for pattern in ("dri/swrast_dri.so", "libgallium-*.so"):
        for path in glob.glob(f"/usr/lib/*/{pattern}") + glob.glob(f"/usr/lib64/{pattern}"):
            with contextlib.suppress(OSError):
                ctypes.CDLL(path, mode=os.RTLD_DEEPBIND | os.RTLD_NOW)


def check_rendering() -> None:
    """Draws one tiny frame, in a process of its own for graphics libraries may die instead of raising.

    Raises UserError whose first line is the apt command that mends a missing library.
    """
    require_egl()
    done = subprocess.run([sys.executable, "-c", _DRAW], capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"{FIX}\n(MUJOCO_GL={os.environ.get('MUJOCO_GL')} cannot draw a frame, exit code "
            f"{done.returncode}: {done.stderr.strip()[-500:]})"
        )
