"""Meta-World: environment, tasks."""
