"""Tabletop demonstrations with annotation and ETC items."""
