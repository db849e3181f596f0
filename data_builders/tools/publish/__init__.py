"""Everything that goes with a dataset that is given away: see `__main__`."""

# What is written into a dataset's folder, beside previews. Croissant's is the last: it has the sums of the others.
CARD, STATISTICS, CITATION, CROISSANT = FILES = (
    "README.md",
    "statistics.json",
    "CITATION.bib",
    "croissant.json",
)
