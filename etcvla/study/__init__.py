"""Studies: cells and seeds as a graph of runs, workers that share a folder, and their results."""
