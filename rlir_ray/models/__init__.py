"""World models and frame codecs, one file for each form; adapters."""
