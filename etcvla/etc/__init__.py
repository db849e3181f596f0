"""Embodied trajectory-coupled supervision: facts about episodes, and questions and answers made from them."""

from etcvla.etc.make import make_items

__all__ = ["make_items"]
