"""Compression passes: find what can be cut, cut it, mask, recover, export and quantize."""
