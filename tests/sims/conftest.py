"""Sets MuJoCo's environment variables before any test module imports it."""

import etcvla.sims.headless  # noqa: F401
