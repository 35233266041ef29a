"""Floor 3: what a batch of experience says about a policy."""
