"""Reference networks and the strict reading of their weights."""
