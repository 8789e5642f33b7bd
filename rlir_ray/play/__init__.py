"""Use a world model: generate clips frame by frame, drive the model in a page, train a policy inside."""
