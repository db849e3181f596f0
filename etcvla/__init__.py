"""etcvla: from vision-language models to robot policies with trajectory-coupled data."""

__version__ = "0.1.0"
