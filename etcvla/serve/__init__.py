"""A policy behind a websocket, for openpi's clients and ours; real-time chunking."""
