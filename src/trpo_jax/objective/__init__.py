"""What a batch of experience says about a policy."""
