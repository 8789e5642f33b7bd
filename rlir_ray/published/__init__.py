"""Published checkpoints: loading, and conversion to folders of `transformers`, `diffusers` and this project."""
