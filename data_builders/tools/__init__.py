"""Tools for built datasets: gallery, report, review, publishing, and training the tokenizer."""
