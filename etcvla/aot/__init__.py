"""A stage's step compiled for a TPU slice by libtpu's compiler, on a machine without a TPU, and what that tells."""
