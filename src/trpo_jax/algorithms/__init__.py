"""One file an algorithm: its configuration, its policy update, its metrics."""
