"""One TFDS builder a dataset. Only this wing imports TensorFlow."""
