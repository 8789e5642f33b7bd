"""Training of base models before RL: tokenizers, autoencoders, world models and inverse dynamics models."""
