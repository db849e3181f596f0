"""Annotate robot data without a simulator: calibration, robot state, detectors, a VLM endpoint.

Each module fills the fields of `etcvla.etc.annotation` that it can determine, and leaves the others
unknown.
"""
