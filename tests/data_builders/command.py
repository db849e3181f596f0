"""Run a builder's command in the test's process, because importing TensorFlow takes seconds."""

import contextlib
import runpy

from absl import flags

COMMAND_PACKAGES = ("launch.", "data_builders.")


def run_command(module, *arguments):
    """Run `python -m module ARGUMENTS`, and remove the command's flags afterwards.

    Another command may have flags of the same names.
    """
    with _other_flags_removed():
        existing = set(flags.FLAGS)
        main = runpy.run_module(f"{module}.__main__", run_name="command")["main"]
        try:
            main(flags.FLAGS([module, *arguments]))
        finally:
            for name in set(flags.FLAGS) - existing:
                delattr(flags.FLAGS, name)


@contextlib.contextmanager
def _other_flags_removed():
    """Remove the flags of commands that other tests import; some of them are required."""
    removed = []
    for module, module_flags in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith(COMMAND_PACKAGES):
            removed += [(module, flag) for flag in module_flags]
    for _, flag in removed:
        delattr(flags.FLAGS, flag.name)
    try:
        yield
    finally:
        for module, flag in removed:
            flags.FLAGS[flag.name] = flag
            flags.FLAGS.register_flag_by_module(module, flag)
