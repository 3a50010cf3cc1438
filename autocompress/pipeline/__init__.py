"""The stages of a study, from preparation to report, free of any orchestrator."""
