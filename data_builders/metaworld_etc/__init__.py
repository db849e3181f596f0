"""Meta-World demonstrations with annotation and ETC: see `metaworld_etc_dataset_builder`."""
