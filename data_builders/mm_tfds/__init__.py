"""Importer of image-text datasets that TFDS has prepared."""
