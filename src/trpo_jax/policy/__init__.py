"""Floor 2: what a policy is."""
