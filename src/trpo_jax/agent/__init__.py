"""One iteration of on-policy learning, as pure functions."""
