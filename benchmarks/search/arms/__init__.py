"""The searchers that are compared: each judges candidates and tells a recorder until it is stopped."""
