"""Recordings, prompts and events. A module is imported by its full name: no command loads PyAV before it decodes."""
