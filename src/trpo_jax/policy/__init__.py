"""Policy networks, action distributions, and normalization of observations."""
