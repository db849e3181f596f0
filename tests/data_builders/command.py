"""A builder's command in this process: importing TensorFlow takes longer than what is tested."""

import contextlib
import runpy

from absl import flags

OURS = ("launch.", "data_builders.")


def run_command(module, *arguments):
    """`python -m module ARGUMENTS`; its flags are forgotten afterwards, for another command's may have their names."""
    with _without_ours():
        before = set(flags.FLAGS)
        main = runpy.run_module(f"{module}.__main__", run_name="command")["main"]
        try:
            main(flags.FLAGS([module, *arguments]))
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)


@contextlib.contextmanager
def _without_ours():
    """Takes away the flags that other tests' imports of commands left, some of them required."""
    away = [
        (of, flag)
        for of, found in flags.FLAGS.flags_by_module_dict().items()
        if of.startswith(OURS)
        for flag in found
    ]
    for _, flag in away:
        delattr(flags.FLAGS, flag.name)
    try:
        yield
    finally:
        for of, flag in away:
            flags.FLAGS[flag.name] = flag
            flags.FLAGS.register_flag_by_module(of, flag)
