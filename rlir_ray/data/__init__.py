"""Recordings and prompts. `write_recording` writes a world of your own: event k leads INTO frame k."""

from rlir_ray.data.recordings import write_recording

__all__ = ["write_recording"]
