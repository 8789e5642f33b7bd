"""Weights as arrays with a checksum, and their broadcast between processes. No Ray."""
