"""Contract tests for what a user may plug in, for any test runner: a target of your own joins with one line."""
