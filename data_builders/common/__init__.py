"""Code shared by the dataset builders and tools."""
