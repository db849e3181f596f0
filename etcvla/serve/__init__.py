"""A policy behind a websocket, for openpi's clients and ours, and real-time chunking."""
