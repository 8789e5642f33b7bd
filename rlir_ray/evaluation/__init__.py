"""Evaluation: action following, picture quality, and the report of a run."""
