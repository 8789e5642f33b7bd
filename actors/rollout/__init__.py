"""The rollout pool: Ray actors around a `Sampler`, and the actor that makes the prompts."""
