"""TFDS builders, one folder per dataset, and tools for built datasets.

No other package of this repository imports TensorFlow.
"""

import os

# Without these settings TensorFlow logs several lines about the CPU on every start.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
