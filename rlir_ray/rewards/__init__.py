"""Rewards: the inverse reward, its comparison rules, and the checks that a judge must pass on real clips."""
