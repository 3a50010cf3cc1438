"""What is measured of an artifact: latency beside the dense baseline, and quality, both on the target's own runtime."""
