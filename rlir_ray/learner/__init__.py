"""The learner: the optimiser step for any engine, the objectives, and the engines."""
