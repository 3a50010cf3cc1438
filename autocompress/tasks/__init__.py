"""Built-in tasks with real data."""
