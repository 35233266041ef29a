"""Mathematics on pytrees; knows vectors and functions, not reinforcement learning."""
