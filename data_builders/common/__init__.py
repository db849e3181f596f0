"""What the dataset builders share."""
