"""The learner: the engine-agnostic step, and the engines that run it."""
