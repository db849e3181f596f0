"""MuJoCo chooses how to draw when it is imported: before any test module imports it, say that there is no display."""

import etcvla.sims.headless  # noqa: F401
