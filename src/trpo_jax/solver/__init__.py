"""Floor 1: mathematics on pytrees; knows vectors and functions, not reinforcement learning."""
