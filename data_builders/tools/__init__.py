"""Tools for built datasets: gallery, report, publishing, tokenizer training."""
