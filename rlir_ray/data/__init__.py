"""Recordings, prompts and events. Import each module by its full name, so that only commands that decode load PyAV."""
