"""Rendering without a display: the environment variables that MuJoCo needs, and a check.

Import this module before `mujoco`.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import subprocess
import sys

from etcvla.errors import UserError

FIX = "sudo apt-get install -y libegl1 libgl1"
_RENDER_SCRIPT = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='.1'/></worldbody></mujoco>")
with mujoco.Renderer(model, 8, 8) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
"""

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")
# At these image sizes, one software-rendering thread per process is faster than several.
os.environ.setdefault("LP_NUM_THREADS", "1")


def require_egl() -> None:
    """Raise UserError with the apt command if the EGL or GL library is missing. Renders nothing.

    Without these libraries, `import mujoco` fails with a message that names no cause.
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
    _load_mesa_with_its_own_llvm()


def _load_mesa_with_its_own_llvm() -> None:
    """Load Mesa's software renderer such that it resolves symbols in its own LLVM first.

    TensorFlow exports the symbols of its LLVM globally. A renderer that is loaded without
    RTLD_DEEPBIND uses those and crashes the process. Does nothing where Mesa is not installed in
    these folders.
    """
    for pattern in ("dri/swrast_dri.so", "libgallium-*.so"):
        paths = glob.glob(f"/usr/lib/*/{pattern}") + glob.glob(f"/usr/lib64/{pattern}")
        for path in paths:
            with contextlib.suppress(OSError):
                ctypes.CDLL(path, mode=os.RTLD_DEEPBIND | os.RTLD_NOW)


def check_rendering() -> None:
    """Raise UserError if MuJoCo cannot render a frame.

    The message starts with the apt command that usually fixes it. The frame is rendered in a
    subprocess, because graphics libraries may abort the process instead of raising.
    """
    require_egl()
    done = subprocess.run([sys.executable, "-c", _RENDER_SCRIPT], capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"{FIX}\n(MUJOCO_GL={os.environ.get('MUJOCO_GL')} cannot render a frame, exit code "
            f"{done.returncode}: {done.stderr.strip()[-500:]})"
        )
