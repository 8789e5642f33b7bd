"""Reinforcement learning with inverse rewards for action-conditioned video world models."""
