"""etcvla: a vision-language model becomes a robot policy over two bridges, with embodied trajectory-coupled data."""

__version__ = "0.1.0"
