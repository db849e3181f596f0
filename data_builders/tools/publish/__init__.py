"""Files that accompany a published dataset."""

# Files that `publish` writes into a dataset's folder, besides the previews. The Croissant file is
# written last, because it has the checksums of the others.
CARD = "README.md"
STATISTICS = "statistics.json"
CITATION = "CITATION.bib"
CROISSANT = "croissant.json"
FILES = (CARD, STATISTICS, CITATION, CROISSANT)
