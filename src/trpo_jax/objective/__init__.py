"""Advantages, the surrogate objective, and trust-region updates of a policy."""
