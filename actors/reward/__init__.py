"""The reward pool: Ray Serve replicas around a `Reward`, of one run or of a service that several runs share."""
