"""Print a suite as JSON: `python -m etcvla.sims NAME`.

Also renders a frame, to check that this works.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from etcvla.sims import headless, registry, suites


def main() -> None:
    """Print the suite that the command line names; exit with "error: ..." for a user error."""
    try:
        suite = suites.describe(sys.argv[1])
        if registry.get(suite.simulator).uses_mujoco:
            headless.check_rendering()
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(dataclasses.asdict(suite)))


if __name__ == "__main__":
    main()
