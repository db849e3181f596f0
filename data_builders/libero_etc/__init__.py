"""LIBERO demonstrations with annotation and ETC items."""
