"""A run around the algorithm: its folder, checkpoints, checks before the start, progress and traces. No Ray."""
