"""The searchers that are compared. Each is a function that judges candidates and tells a recorder until it is stopped."""
