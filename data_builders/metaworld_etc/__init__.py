"""Meta-World demonstrations with annotation and ETC items."""
