"""Search: Optuna proposes, Ray Tune executes, and one ledger keeps the truth."""
