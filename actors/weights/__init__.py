"""Publication of each version of the weights to the rollout actors, by the object store or by broadcast."""
