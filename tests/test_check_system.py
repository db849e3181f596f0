"""What `make` says first on a machine that lacks something."""

import ctypes
import subprocess
import sys

import pytest

from launch import check_system


@pytest.mark.parametrize(
    ("gone", "packages"),
    [
        ((), []),
        (("libEGL.so.1",), ["libegl1"]),
        (("libEGL.so.1", "libGL.so.1"), ["libegl1", "libgl1"]),
    ],
)
def test_missing_libraries_are_named_by_their_package(monkeypatch, gone, packages):
    def load(library):
        if library in gone:
            raise OSError(f"{library}: cannot open shared object file")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert check_system.missing_packages() == packages


def test_it_runs_without_site_packages_and_says_the_command_first():
    hide = (
        "import ctypes, runpy, sys; "
        "ctypes.CDLL = lambda name: (_ for _ in ()).throw(OSError(name)); "
    )
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-I",
            "-c",
            hide + f"runpy.run_path({check_system.__file__!r}, run_name='__main__')",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "sudo apt-get install -y libegl1 libgl1"
