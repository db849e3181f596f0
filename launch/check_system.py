"""Name the system packages that are missing. Needs nothing but Python itself.

python3 launch/check_system.py
"""

import ctypes
import importlib.util
import sys

# Library that headless rendering loads -> Debian package that provides it.
LIBRARIES = {"libEGL.so.1": "libegl1", "libGL.so.1": "libgl1"}


def missing_packages() -> list[str]:
    """Return the Debian packages to install. Libraries are checked on Linux alone."""
    packages = []
    if sys.platform == "linux":
        for library, package in LIBRARIES.items():
            try:
                ctypes.CDLL(library)
            except OSError:
                packages.append(package)
    # Debian ships the installer of venv as a package of its own.
    if importlib.util.find_spec("ensurepip") is None:
        packages.append("python3-venv")
    return packages


def main() -> None:
    """Exit with the command that installs what is missing."""
    if sys.version_info < (3, 11):  # noqa: UP036  this script runs under any Python
        version = sys.version.split()[0]
        sys.exit(f"Python 3.11+ is required, this is {version}; try `make PYTHON=python3.11`")
    packages = missing_packages()
    if packages:
        sys.exit(f"sudo apt-get install -y {' '.join(packages)}\n(missing; then run make again)")


if __name__ == "__main__":
    main()
