"""Checkpoints that act and answer: raw observations in, physical actions or text out."""

from etcvla.policy.options import HEADS, PolicyOptions, trained_head
from etcvla.policy.policy import Policy, PolicyOutput

__all__ = ["HEADS", "Policy", "PolicyOptions", "PolicyOutput", "trained_head"]
