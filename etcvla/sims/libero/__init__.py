"""LIBERO: environment, scripted expert, oracle, files of the package, tasks."""
