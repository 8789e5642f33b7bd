"""Rewards: inverse rewards, their comparison rules, and the checks that a judge must pass on real clips."""
