"""World models and frame codecs, one file a form; adapters."""
