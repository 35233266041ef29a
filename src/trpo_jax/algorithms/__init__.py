"""One file per algorithm: its configuration, its policy update, its metrics."""
