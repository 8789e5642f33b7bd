"""Recordings in the VPT format: NAME.mp4 and NAME.jsonl, one event a frame."""
