"""Says what the system lacks, before anything is installed: needs nothing but Python itself.

python3 launch/check_system.py
"""

import ctypes
import importlib.util
import sys

NEEDS = {"libEGL.so.1": "libegl1", "libGL.so.1": "libgl1"}


def lacking() -> list[str]:
    """Debian packages to install; the libraries are what headless rendering needs (Linux alone)."""
    packages = []
    for library, package in NEEDS.items() if sys.platform == "linux" else ():
        try:
            ctypes.CDLL(library)
        except OSError:
            packages.append(package)
    # Debian splits venv's installer off into a package of its own.
    if importlib.util.find_spec("ensurepip") is None:
        packages.append("python3-venv")
    return packages


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036  this very check is why it runs under any Python
        sys.exit(
            f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; try `make PYTHON=python3.11 ...`"
        )
    if packages := lacking():
        sys.exit(
            f"sudo apt-get install -y {' '.join(packages)}\n(missing on this system; then run make again)"
        )
