"""Images of 2-D shapes with questions."""
