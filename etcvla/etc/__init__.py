"""ETC (embodied trajectory-coupled) supervision: question-answer items of annotated episodes."""

from etcvla.etc.make import make_items

__all__ = ["make_items"]
