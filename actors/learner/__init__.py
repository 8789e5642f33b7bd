"""The learner group: Ray Train ranks around a `Learner`, the queue of their commands, and the sender of broadcasts."""
