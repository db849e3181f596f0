"""Converter that adds annotation and ETC items to any RLDS dataset."""
