"""Evaluation of checkpoints: benchmarks in simulators, held-out questions, and what models know."""
