"""Where candidates run: killable processes, the exclusive latency slot and the Ray session."""
